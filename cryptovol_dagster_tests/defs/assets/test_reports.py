"""Drift numbers and reports on a small market; Evidently itself is tested beside its door."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.cli import main
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.defs.assets.drift import drift_window
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.metadata import rounded
from cryptovol_dagster.lake.files import Lake, LakeError
from cryptovol_dagster.monitoring import evidently as evidently_report
from cryptovol_dagster.monitoring import performance
from cryptovol_dagster.monitoring.evidently import EvidentlyReport, Side
from cryptovol_dagster.monitoring.index import SUMMARY
from cryptovol_dagster.verbs import demo, runs
from cryptovol_dagster_tests.pipeline import MARKET, Pipeline
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, hours_from, small_settings, write_market
from ingestor.settings import Settings
from ingestor.settings.sections import MinutesSettings

MOVED = {
    "strongest": {"ret_1": 0.7},
    "limits": {"ret_1": 0.65},
    "beside": {"score": {"distance": 0.3, "limit": None, "told": "uncalibrated"}},
}
SPEC = timescale_spec(small_settings(Path()).timescales.seconds, "seconds")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Side]:
    """Reports without Evidently: sides are held against the schema as ever, and kept."""
    kept: list[Side] = []

    def report(
        kind: str, as_of: str, sides: tuple[Side, ...], schema: pa.Schema, **more: Any
    ) -> EvidentlyReport:
        for side in sides:
            evidently_report.validate(kind, side, schema, numbers_only=len(sides) == 2)
        kept.extend(sides)
        measured = [
            {"name": side.name, "hours": side.hours, "rows": len(side.frame), "sampled_from": len(side.frame)}
            for side in sides
        ]
        summary = {
            "kind": kind,
            "as_of": as_of,
            "measured_on": measured,
            "columns": len(schema),
            "left_out": {},
        }
        return EvidentlyReport(f"<html>{kind}".encode(), b"{}", {**summary, "verdict": "stub", **more})

    def compare(
        kind: str, as_of: str, reference: Side, current: Side, schema: pa.Schema, *_: Any
    ) -> EvidentlyReport:
        return report(kind, as_of, (reference, current), schema, share_over=0.25, **MOVED)

    def quality(as_of: str, side: Side, schema: pa.Schema, key: tuple[str, ...], *_: Any) -> EvidentlyReport:
        assert not side.frame.duplicated(list(key)).any()
        return report(evidently_report.DATA_QUALITY, as_of, (side,), schema, share_over=None)

    monkeypatch.setattr(evidently_report, "comparison_report", compare)
    monkeypatch.setattr(evidently_report, "data_quality_report", quality)
    return kept


def _numbers(lake: Lake, key: str) -> dict[str, Any]:
    return json.loads(lake.read_bytes("seconds/drift_scores", key, "json"))


def test_every_hour_has_drift_numbers_and_the_first_says_why_it_has_none(pipeline: Pipeline) -> None:
    first, *others = (_numbers(pipeline.lake, key) for key in pipeline.hours)
    assert first["status"] == "no_reference"
    assert first["reason"] == "0 of the 3 hours before have valid rows, 1 are needed"
    assert [found["status"] for found in others] == ["scored"] * 3
    assert [found["reference"]["hours"] for found in others] == [1, 2, 3]
    told = pipeline.summary.metadata["seconds/drift_scores"][pipeline.hours[-1]]
    assert told["share_over"] == rounded(others[-1]["share_over"])
    assert told["strongest"].startswith("| column | distance |")
    assert "share_over" not in pipeline.summary.metadata["seconds/drift_scores"][pipeline.hours[0]]
    page = (pipeline.settings.storage.reports_dir / "index.html").read_text()
    assert f"{pipeline.hours[0]} … {pipeline.hours[-1]}" in page


def test_a_range_makes_the_reports_of_its_newest_hour_on_the_declared_columns(
    tmp_path: Path, own_dagster_home: None, shown: list[Side]
) -> None:
    settings, hours = small_settings(tmp_path, models=("ewma",)), hours_from(FIRST_HOUR, 2)
    write_market(settings.storage.raw_dir, hours, gap_in=hours[1])
    kinds = ("data_quality_report", "train_test_report", "drift_report")
    selection = [*MARKET, "seconds/splits", *(f"seconds/{kind}" for kind in kinds)]
    summary = runs.materialize_range(settings, hours[0], hours[1], selection)
    sides = {side.name: side for side in shown}
    assert set(sides) == {"the hour", "training", "test", "reference", "recent"}
    # Nothing was decided yet, so nothing was scored; labels there are.
    for name in ("reference", "recent"):
        assert sides[name].frame["score"].isna().all()
    assert sides["recent"].frame["ln_sigma"].notna().mean() > 0.9
    # A report on quality is of every row; no other sees those of a gap.
    assert len(sides["the hour"].frame) == 1_440 > len(sides["recent"].frame)
    assert (sides["reference"].hours, sides["recent"].hours) == (
        f"{hours_from('2026-04-04-01:00', 1)[0]} … {hours[0]}",
        hours[1],
    )
    lake, storage = Lake(settings.storage.lake_dir), settings.storage
    for kind in kinds:
        assert (
            lake.partitions(f"seconds/{kind}", "html")
            == lake.partitions(f"seconds/{kind}", SUMMARY)
            == hours[1:]
        )
        told = summary.metadata[f"seconds/{kind}"]
        assert told[hours[1]]["verdict"] == "stub"
        assert told[hours[1]]["report"] == lake.path(f"seconds/{kind}", hours[1], "html").as_uri()
        if kind != "train_test_report":
            assert (
                told[hours[0]]["status"]
                == f"not computed in a range; materialize this hour alone (computed: {hours[1]})"
            )
    names = ("data_quality_report", "evidently_report", "drift_report")
    for kind, name in zip(kinds, names, strict=True):
        assert (storage.reports_dir / "evidently" / f"{name}.html").read_text() == f"<html>{kind}"
    assert "25%" in (storage.reports_dir / "index.html").read_text()


def test_the_demo_makes_every_hourly_asset_and_the_minutes_of_its_days(
    tmp_path: Path, own_dagster_home: None, shown: list[Side]
) -> None:
    settings, hours = _with_minutes(small_settings(tmp_path, models=("ewma",))), hours_from(FIRST_HOUR, 2)
    write_market(settings.storage.raw_dir, hours)
    pipeline = demo.Pipeline.of(settings)
    past, newest, daily = pipeline.past(), pipeline.newest(), pipeline.minutes()
    assert not shown  # results come before the reports
    reports = pipeline.reports()
    assert len(shown) == 5  # data quality has one side, the other reports two
    assert past.materialized == newest.materialized
    # The demo has no scorer, so nothing was published.
    demo_assets = [*past.materialized, *reports.materialized, "seconds/live_outcomes"]
    assert sorted(demo_assets) == runs.assets_over(build_defs(settings), hours[0])
    assert set(reports.materialized.values()) == {2}
    assert {"minutes/candles", "minutes_h5/labels", "minutes_h15/labels"} <= set(daily.materialized)
    # Hours once made Dagster write the day after them, too.
    assert Lake(settings.storage.lake_dir).partitions("minutes/candles") == ["2026-04-04"]


def _with_minutes(settings: Settings) -> Settings:
    timescales = settings.timescales.model_copy(update={"minutes": MinutesSettings()})
    return settings.model_copy(update={"timescales": timescales})


def test_hours_and_days_are_not_made_in_one_run(pipeline: Pipeline) -> None:
    first, last = pipeline.hours[0], pipeline.hours[-1]
    for start, end in ((first, last), (first, first)):
        with pytest.raises(
            ValueError, match=r"minutes/bars: not an asset with partitions like 2026-04-04-03"
        ):
            runs.materialize_range(pipeline.settings, start, end, ["seconds/bars", "minutes/bars"])


def test_a_drift_report_without_hours_before_fails_in_a_line(pipeline: Pipeline, shown: list[Side]) -> None:
    first = pipeline.hours[0]
    says = r"seconds/drift_report: seconds/features has no partition in .* … 2026-04-04-02:00"
    with pytest.raises(runs.RunFailed, match=says) as failure:
        runs.materialize_range(pipeline.settings, first, first, ["seconds/drift_report"])
    assert "\n" not in str(failure.value)
    assert not shown


def test_the_verb_prints_a_report_and_lists_all(
    pipeline: Pipeline, shown: list[Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(pipeline.settings.model_dump(mode="json", exclude={"kafka"})))
    monkeypatch.setenv("CRYPTOVOL_CONFIG", str(config))
    invoke = CliRunner().invoke
    assert "no report yet" in invoke(main, ["report", "--list"]).stdout
    made = invoke(main, ["report", "--drift"])
    assert made.exit_code == 0, made.output
    newest = pipeline.hours[-1]
    for text in (
        f"Reference against recent, as of {newest}: reference: ",
        "columns: stub",
        "ret_1                       0.70  limit 0.65",
        "score                       0.30  no limit yet (uncalibrated)",
        "index.html",
    ):
        assert text in made.stdout
    quality = json.loads(invoke(main, ["report", "--data-quality", "--json"]).stdout)
    assert quality["as_of"] == newest
    assert Path(quality["report"]["path"]).is_file()
    listed = json.loads(invoke(main, ["report", "--list", "--json"]).stdout)["reports"]
    assert [(one["as_of"], one["kind"]) for one in listed] == [
        (newest, "drift_report"),
        (newest, "data_quality_report"),
    ]
    table = invoke(main, ["report", "--list"]).stdout
    assert "25%  stub" in table
    assert listed[0]["path"] in table


def test_each_hour_is_scored_by_the_champion_of_before_and_nothing_later_changes_that(
    pipeline: Pipeline,
) -> None:
    lake, hours = pipeline.lake, pipeline.hours
    first, *others = (performance.read_performance(lake, SPEC, key) for key in hours)
    assert (first["status"], first["reason"]) == ("no_champion", f"nothing was decided before {hours[0]}")
    assert (first["partition"], first["columns"]["score"]) == (None, None)
    assert first["without"]["score"] == first["reason"]
    for before, found in zip(hours, others, strict=False):
        assert found["status"] == "scored"
        assert found["champion"]["decided_as_of"] == before < found["as_of"]
        assert found["columns"]["score"] is not None
        assert found["columns"]["ln_sigma"] is not None
        rows = found["partition"]
        assert rows["verdict"] == "insufficient_data"
        assert f"{rows['rows']:,} rows" in rows["measured_on"]
    # All that was decided since lies in the lake; scored again an hour is what it was.
    key = hours[2]
    window = drift_window(pipeline.settings.monitoring)
    again = performance.assess(lake, SPEC, key, window, seed=pipeline.settings.models.seed)
    assert json.loads(performance.to_bytes(again)) == others[1]
    table = lake.read_table(performance.rows_asset(SPEC), *partition_window(key)).to_pandas()
    assert 0 < len(table) <= others[1]["partition"]["rows"]
    start_ns, end_ns = partition_window(key)
    matured_ns = table["t_ns"] + SPEC.horizon_ns
    assert matured_ns.between(start_ns, end_ns).all()
    pooled = others[-1]["pooled"]["24 h"]
    assert pooled["rows"] == sum(lake.count_rows(performance.rows_asset(SPEC), key) for key in hours[1:])
    told = pipeline.summary.metadata["seconds/performance"][hours[-1]]
    assert told["24 h: measured on"] == pooled["measured_on"]
    assert told["limits"].startswith("uncalibrated: ")


def test_without_a_champion_nothing_that_was_scored_before_is_pooled(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    lake, key = Lake(tmp_path / "lake"), pipeline.hours[1]
    for name in ("features", "labels"):
        for hour in pipeline.hours[:2]:
            target = lake.path(f"seconds/{name}", hour)
            target.parent.mkdir(parents=True)
            shutil.copyfile(pipeline.lake.path(f"seconds/{name}", hour), target)
    lake.write_bytes(performance.rows_asset(SPEC), key, b"stale", "parquet")
    window = drift_window(pipeline.settings.monitoring)
    found = performance.assess(lake, SPEC, key, window, seed=1)
    assert found["status"] == "no_champion"
    assert found["pooled"] == {"24 h": None, "7 d": None}
    # Labels drift without any model.
    assert set(found["without"]) == {"score"}
    assert found["columns"]["ln_sigma"] is not None
    with pytest.raises(LakeError, match=f"seconds/performance lacks partition {key}"):
        performance.read_performance(lake, SPEC, key)
