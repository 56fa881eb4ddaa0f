"""train, evaluate, backfill: what people see, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from cryptovol_dagster.cli import main
from cryptovol_dagster.verbs import ranges, runs
from cryptovol_dagster_tests.pipeline import Pipeline
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, PRODUCTS, hours_from, small_settings
from ingestor.settings import Settings


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a verb of `cryptovol` under given settings."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    def call(settings: Settings, *arguments: str) -> Result:
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude={"kafka"})))
        monkeypatch.setenv("CRYPTOVOL_CONFIG", str(config))
        return CliRunner().invoke(main, list(arguments))

    return call


def test_too_little_data_is_a_verdict_with_reasons_and_an_error_only_when_asked(
    pipeline: Pipeline, invoke
) -> None:
    result = invoke(pipeline.settings, "evaluate", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["evaluation"]["verdict"] == "insufficient_data"
    assert found["evaluation"]["as_of"] == pipeline.hours[-1]
    assert found["decision"]["champion"]["as_of"] == pipeline.hours[0]
    strict = invoke(pipeline.settings, "evaluate", "--strict")
    assert strict.exit_code == 3
    assert "verdict: insufficient_data" in strict.stdout
    taught = found["evaluation"]["sufficiency"]
    assert f"training: {taught['summary']}\n  {taught['missing'][0]}\n" in strict.stdout
    test = found["evaluation"]["counts"]["test"]
    assert f"as of {pipeline.hours[-1]}: {test['rows']:,} test rows of {', '.join(PRODUCTS)}" in strict.stdout
    assert f"champion: ewma as of {pipeline.hours[0]}, unproven (HOLD)" in strict.stdout
    assert f"decided already as of {pipeline.hours[0]}: one decision a day" in strict.stdout


def test_training_names_what_it_trained_and_where_it_is(pipeline: Pipeline, invoke) -> None:
    result = invoke(pipeline.settings, "train", "--model-type", "baseline", "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["models"]
    assert row["model"] == "baseline_zscore"
    assert row["train_rows"] > row["train_positives"] > 0
    assert Path(row["path"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train",), "has no labels yet"),
        (("backfill",), "has no ticks: record with `cryptovol ingest`"),
        (("backfill", "--from", "yesterday", "--to", FIRST_HOUR), "'yesterday' is not an hourly partition"),
        (("train", "--partition", "2020-01-01-00:00"), "is before dagster.partitions_start"),
        (("train", "--partition", "2099-01-01-00:00"), "is in the future"),
        (("train", "--partition", FIRST_HOUR), "seconds/features lacks partition"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(
    tmp_path: Path, invoke, arguments: tuple[str, ...], says: str
) -> None:
    result = invoke(small_settings(tmp_path), *arguments)
    assert result.exit_code == 1
    assert says in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert "Traceback" not in result.output


def test_only_what_is_missing_is_filled_in_runs_of_neighbouring_hours(pipeline: Pipeline) -> None:
    first, last = hours_from(FIRST_HOUR, 6)[0], hours_from(FIRST_HOUR, 6)[-1]
    missing = ranges.ranges_to_fill(pipeline.settings, first, last, only_missing=True, market_only=False)
    assert missing == [(hours_from(FIRST_HOUR, 5)[-1], last)]
    whole = ranges.ranges_to_fill(pipeline.settings, None, None, only_missing=False, market_only=False)
    assert whole == [(pipeline.hours[0], pipeline.hours[-1])]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--compare-live",), "No such option"),
        (("--compare-train-test=no",), "does not take a value"),
        (("--compare-train-test", "yesterday"), "unexpected extra argument"),
        (("--drift", "--data-quality"), "exclude each other"),
        (("--list", "--partition", FIRST_HOUR), "omit --partition"),
    ],
)
def test_the_report_asked_for_is_made_and_nothing_else_is_taken(
    tmp_path: Path, invoke, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    """What the report holds is tested beside Evidently; here only what is asked for."""
    settings = small_settings(tmp_path)
    asked: list[tuple[str, str, tuple[str, ...]]] = []

    def asked_only(_settings: Settings, first: str, last: str, selection: list[str]) -> None:
        asked.append((first, last, tuple(selection)))
        raise ranges.NothingToDo("asked")

    monkeypatch.setattr(runs, "materialize_range", asked_only)
    hour, compared = ("--partition", FIRST_HOUR), ("seconds/splits", "seconds/train_test_report")
    for named, assets in (
        ((), compared),
        (("--compare-train-test",), compared),
        (("--drift",), ("seconds/drift_report",)),
        (("--data-quality",), ("seconds/data_quality_report",)),
    ):
        assert invoke(settings, "report", *named, *hour).exit_code == 1
        assert asked.pop() == (FIRST_HOUR, FIRST_HOUR, assets)
    refused = invoke(settings, "report", *arguments)
    assert refused.exit_code == 2
    assert says in refused.output
    assert not asked
