"""The chains of the minutes by Dagster: candles to champions over days, in a run over a range and alone."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from cryptovol_dagster.chains import UnknownChain, model_spec, spec_of, timescale_specs
from cryptovol_dagster.cli import main
from cryptovol_dagster.core.evaluation.backtest import fold_ends, walk_forward
from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.models import load_model
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import partition_window, partitions_between
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.resources import build_resources
from cryptovol_dagster.history.rows import candle_grid, labelled_rows, read_history
from cryptovol_dagster.history.store import DAY_NS, History
from cryptovol_dagster.lake import plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.reserved_months import ledger_path
from cryptovol_dagster.verbs import backtest as verb
from cryptovol_dagster.verbs import ranges, runs
from cryptovol_dagster.verbs.backfill import backfill
from cryptovol_dagster_tests.synthetic import PRODUCTS, small_settings
from ingestor.settings import Settings
from ingestor.settings.sections import (
    HorizonSettings,
    MinutesSettings,
    ModelName,
    ModelSettings,
    SplitSettings,
)

FIRST, LAST = "2024-03-01", "2024-03-09"
FIRST_NS = pd.Timestamp(FIRST, tz="UTC").value
DAYS = partitions_between(FIRST_NS, FIRST_NS + 9 * DAY_NS, DAY_NS)
#: Of both products: minutes of the third day without a candle.
HOLE = slice(2 * 1_440 + 600, 2 * 1_440 + 640)


class Minutes(NamedTuple):
    """Settings, and the summary of the run over all days."""

    settings: Settings
    summary: runs.RunSummary

    @property
    def lake(self) -> Lake:
        return Lake(self.settings.storage.lake_dir)

    def spec(self, name: str) -> TimescaleSpec:
        return timescale_specs(self.settings)[name]


MODELS: tuple[ModelName, ...] = ("persistence", "ewma", "har_logit", "xgboost")


def minutes_settings(folder: Path, models: tuple[ModelName, ...] = MODELS) -> Settings:
    """Two horizons that learn on four days and are tested on two, every third day."""
    minutes = MinutesSettings(
        windows_bars=(5, 15, 60),
        ewma_half_lives_bars=(5, 20),
        horizons=(
            HorizonSettings(bars=5, target="garman_klass"),
            HorizonSettings(bars=15, target="close_to_close"),
        ),
        retrain_every_days=3,
        retrain_anchor=date(2024, 3, 6),
        splits=SplitSettings(train_span_s=4 * 86_400, test_span_s=2 * 86_400),
        models=ModelSettings(
            enabled=models,
            xgboost_trees=15,
            xgboost_min_child_weight=5.0,
            bootstrap_resamples=20,
        ),
    )
    settings = small_settings(folder)
    timescales = settings.timescales.model_copy(update={"minutes": minutes})
    return settings.model_copy(
        update={
            "timescales": timescales,
            "dagster": settings.dagster.model_copy(update={"minutes_start": date(2024, 3, 1)}),
        }
    )


def market_candles(seed: int) -> pd.DataFrame:
    """Nine days whose log volatility remembers half an hour."""
    random = np.random.default_rng(seed)
    n = len(DAYS) * 1_440
    level, noise = np.empty(n), random.normal(0, 0.25, n)
    level[0] = 0.0
    for k in range(1, n):
        level[k] = 0.97 * level[k - 1] + noise[k]
    move = 4e-4 * np.exp(level) * random.standard_normal(n)
    close = 100 * np.exp(np.cumsum(move))
    opened = np.append(100.0, close[:-1])
    spread = 1e-4 * np.exp(level) * random.uniform(0.2, 1, (2, n))
    frame = pd.DataFrame(
        {
            "start_ns": FIRST_NS + 60 * 10**9 * np.arange(n, dtype=np.int64),
            "open": opened,
            "high": np.maximum(opened, close) * (1 + spread[0]),
            "low": np.minimum(opened, close) * (1 - spread[1]),
            "close": close,
            "volume": random.uniform(0.1, 5, n),
        }
    )
    return frame.drop(index=range(HOLE.start, HOLE.stop))


@pytest.fixture(scope="module")
def minutes(tmp_path_factory: pytest.TempPathFactory, own_dagster_home: None) -> Minutes:
    settings = minutes_settings(tmp_path_factory.mktemp("minutes"))
    history = History(settings.storage.history_dir)
    for number, product in enumerate(PRODUCTS):
        history.record(
            product, market_candles(number).assign(product=product), source="file:a.csv", now_ns=FIRST_NS
        )
    summary = runs.materialize_range(
        settings, FIRST, LAST, runs.chain_selection(settings, "minutes"), tags={"cryptovol/backfill": "true"}
    )
    return Minutes(settings, summary)


def test_a_run_over_days_makes_both_horizons_and_trains_on_its_days(minutes: Minutes) -> None:
    made = minutes.summary.materialized
    for name in ("candles", "bars", "features"):
        assert made[f"minutes/{name}"] == len(DAYS)
    for chain_name in ("minutes_h5", "minutes_h15"):
        for name in ("labels", "splits", "model_xgboost", "model_evaluation", "champion", "model_card"):
            assert made[f"{chain_name}/{name}"] == len(DAYS), (chain_name, name)
        trained = minutes.lake.partitions(f"{chain_name}/model_xgboost", "zip")
        assert trained == ["2024-03-03", "2024-03-06", "2024-03-09"]
        assert minutes.summary.carried[f"{chain_name} 2024-03-08"] == "2024-03-06"
    assert [check for check in minutes.summary.checks_failed if check.severity == "ERROR"] == []


def test_each_horizon_has_its_own_target_split_and_latest_copies(minutes: Minutes) -> None:
    reports_dir = minutes.settings.storage.reports_dir
    for name, horizon_s, target in (("minutes_h5", 300, "gk"), ("minutes_h15", 900, "rv")):
        spec = minutes.spec(name)
        assert spec.target == target
        plan = plans.read_plan(minutes.lake, spec, LAST)
        assert plan.split is not None
        end_ns = partition_window(LAST)[1]
        # The last labelled row is decided H before the day ends.
        assert plan.split.test.end_ns == end_ns - spec.horizon_ns + spec.bar_ns
        assert plan.split.test.start_ns == plan.split.test.end_ns - 2 * DAY_NS
        assert plan.split.test.start_ns - plan.split.validation.end_ns == 2 * spec.horizon_ns
        report = json.loads((reports_dir / name / "model_eval.json").read_text())
        assert (report["as_of"], report["horizon_s"]) == (LAST, horizon_s)
        assert report["data"]["products"] == list(PRODUCTS)
        assert set(report["models"]) == {"persistence", "ewma", "har_logit", "xgboost"}
        assert (reports_dir / name / "model_card_v1.md").is_file()
        assert (reports_dir / name / "decision.json").is_file()
    assert not (reports_dir / "model_eval.json").exists()
    assert {path.name for path in minutes.settings.storage.artifacts_dir.glob("*.zip")} == {
        f"{chain_name}-{model}.zip"
        for chain_name in ("minutes_h5", "minutes_h15")
        for model in ("persistence", "ewma", "har_logit", "xgboost")
    }


def test_a_hole_in_the_candles_is_a_gap_that_no_label_spans(minutes: Minutes) -> None:
    window = partition_window(DAYS[2])
    bars = minutes.lake.read_table("minutes/bars", *window).to_pandas()
    btc = bars[bars["product"] == PRODUCTS[0]].reset_index(drop=True)
    assert btc["in_gap"].sum() == 35  # of 40 minutes five are carried
    assert btc["new_segment"].to_numpy().nonzero()[0].tolist() == [640]
    labels = minutes.lake.read_table("minutes_h5/labels", *window).to_pandas()
    own = labels[labels["product"] == PRODUCTS[0]].set_index("bar_start")
    starts = pd.Timestamp(window[0], tz="UTC") + pd.to_timedelta(range(600, 640), unit="min")
    assert own.loc[starts, "sigma"].isna().all()
    assert bars["spread_nano"].isna().all()
    assert bars["n_trades"].isna().sum() >= len(bars) - 10


def test_a_backfill_of_the_minutes_decides_and_moves_no_alias(minutes: Minutes) -> None:
    for name in ("minutes_h5", "minutes_h15"):
        decision = json.loads(minutes.lake.read_bytes(f"{name}/champion", LAST, "json"))
        assert decision["champion"]["model"] in minutes.settings.timescales.minutes.models.enabled
        assert decision["champion"]["registry_version"] is None
        said = minutes.summary.metadata[f"{name}/champion"][LAST]["aliases"]
        assert said == "this run is over a range of partitions"


def test_a_backfill_is_the_walk_forward_test_on_the_days_it_trains(minutes: Minutes) -> None:
    end_ns = FIRST_NS + len(DAYS) * DAY_NS
    candles = read_history(History(minutes.settings.storage.history_dir), PRODUCTS, to_ns=end_ns)
    for name in ("minutes_h5", "minutes_h15"):
        spec = minutes.spec(name)
        models = model_spec(minutes.settings.timescales.minutes.models)
        grid = candle_grid(candles, spec)
        ends = fold_ends(grid.start_ns, grid.end_ns, spec)
        found = walk_forward(
            labelled_rows(grid, spec, PRODUCTS), spec, models, ends=ends, feature_hash=feature_hash(spec)
        )
        folds = found.report["folds"]
        assert [fold["as_of"] for fold in folds] == ["2024-03-06", LAST]
        for number, fold in enumerate(folds):
            key = fold["as_of"]
            plan = plans.read_plan(minutes.lake, spec, key)
            assert plan.split is not None
            assert fold["split"] == plan.split.to_dict()
            assert fold["thresholds"] == plan.thresholds
            asset = f"{name}/model_evaluation_predictions"
            stored = minutes.lake.read_table(asset, *partition_window(key)).to_pandas()
            own = found.predictions[found.predictions["fold"] == number]
            assert np.array_equal(own["y"], stored["y"])
            report = json.loads(minutes.lake.read_bytes(f"{name}/model_evaluation", key, "json"))
            for model in models.enabled:
                assert np.array_equal(own[model], stored[model]), model
                precision = fold["models"][model]["average_precision"]
                assert precision == report["models"][model]["average_precision"]


@pytest.fixture
def configured(minutes: Minutes, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that `cryptovol backtest` finds."""
    found = type("Loaded", (), {"settings": minutes.settings})
    monkeypatch.setattr(verb, "load_settings", lambda: found)
    return minutes.settings


def test_the_backtest_verb_prints_saves_and_writes_a_card(configured: Settings, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    asked = ["--product", PRODUCTS[0], "--models", "ewma,har_logit", "--out", str(tmp_path)]
    result = CliRunner().invoke(verb.backtest, [*asked, "--card", str(card)])
    assert result.exit_code == 0, result.output
    assert "har_logit over ewma: AP " in result.output
    report = json.loads((tmp_path / f"{PRODUCTS[0]}-h5.json").read_text())
    assert [fold["as_of"] for fold in report["folds"]] == ["2024-03-06", LAST]
    assert report["data"]["products"] == [PRODUCTS[0]]
    # Two linear models: nothing is made of trees, so there is no gain to show.
    assert {path.name.removeprefix(f"{PRODUCTS[0]}-h5-") for path in tmp_path.glob("*.png")} == {
        "by_month.png", "precision_recall.png", "precision_recall_onset.png", "reliability.png"
    }  # fmt: skip
    assert f"## {PRODUCTS[0]}, next 5 minutes, Garman–Klass volatility" in card.read_text()
    assert not ledger_path(configured.storage.reports_dir).exists()


@pytest.fixture
def held_out(configured: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings whose reserved months begin on the seventh; returns the ledger of their evaluations."""
    minutes = configured.timescales.minutes.model_copy(update={"holdout_from": date(2024, 3, 7)})
    timescales = configured.timescales.model_copy(update={"minutes": minutes})
    storage = configured.storage.model_copy(update={"reports_dir": tmp_path / "reports"})
    settings = configured.model_copy(update={"timescales": timescales, "storage": storage})
    monkeypatch.setattr(verb, "load_settings", lambda: type("Loaded", (), {"settings": settings}))
    return ledger_path(storage.reports_dir)


ASKED = ("--product", PRODUCTS[0], "--models", "ewma", "--json")


def test_reserved_days_are_evaluated_only_when_asked_and_every_evaluation_counts(
    held_out: Path, tmp_path: Path
) -> None:
    report = json.loads(CliRunner().invoke(verb.backtest, ASKED).output)
    assert [fold["as_of"] for fold in report["folds"]] == ["2024-03-06"]
    assert (report["holdout"], report["holdout_looks"]) == (False, 0)
    assert not held_out.exists()
    # Whatever folder, products pooled or models: the same days of the same product were seen.
    for look, more in enumerate(
        ([], ["--out", str(tmp_path / "elsewhere")], ["--product", PRODUCTS[1], "--models", "persistence"]), 1
    ):
        report = json.loads(CliRunner().invoke(verb.backtest, [*ASKED, "--holdout", *more]).output)
        assert [fold["as_of"] for fold in report["folds"]] == [LAST]
        assert (report["holdout"], report["holdout_looks"]) == (True, look)
    looks = [json.loads(line) for line in held_out.read_text().splitlines()]
    assert [look["products"] for look in looks] == [[PRODUCTS[0]], [PRODUCTS[0]], list(PRODUCTS)]
    assert {look["test_end"] for look in looks} == {"2024-03-10T00:00:00Z"}
    assert [path.name for path in tmp_path.rglob("*.jsonl")] == [held_out.name]


def test_an_evaluation_counts_though_the_run_breaks_off_and_a_refused_one_does_not(
    held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = CliRunner().invoke(verb.backtest, ["--product", "SOL-USD", "--holdout"])
    assert str(refused.exception).startswith("no candles of SOL-USD")
    assert not held_out.exists()

    def broken(*_arguments: object, **_named: object) -> None:
        assert len(held_out.read_text().splitlines()) == 1
        raise MemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr("cryptovol_dagster.core.evaluation.backtest.walk_forward", broken)
        assert CliRunner().invoke(verb.backtest, [*ASKED, "--holdout"]).exit_code != 0
    report = json.loads(CliRunner().invoke(verb.backtest, [*ASKED, "--holdout"]).output)
    assert report["holdout_looks"] == 2


@pytest.mark.parametrize(
    "days", [("--from", "2024-03-07"), ("--to", "2024-03-07"), ("--from", "2024-03-06", "--to", LAST)]
)
def test_reserved_days_are_refused_and_not_silently_left_out(held_out: Path, days: tuple[str, ...]) -> None:
    refused = CliRunner().invoke(verb.backtest, [*ASKED, *days])
    assert str(refused.exception) == (
        "test days from 2024-03-07 on are reserved: they are evaluated with --holdout only"
    )
    assert not held_out.exists()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--horizon", "7"], "no horizon of 7 bars is configured: 5, 15"),
        (["--models", "prophet"], "prophet: no such model; there are persistence, baseline_zscore, ewma"),
        (["--product", "SOL-USD"], "no candles of SOL-USD; there are those of BTC-USD, ETH-USD"),
        (["--to", "2024-03-02"], "no fold before 2025-01-01: 6 whole days of candles are needed up to a day"),
    ],
)
def test_what_cannot_be_backtested_is_one_line(configured: Settings, asked: list[str], says: str) -> None:
    result = CliRunner().invoke(verb.backtest, asked)
    assert result.exit_code != 0
    assert str(result.exception).startswith(says)


def test_schedules_say_why_they_wait_or_ask_for_the_day(minutes: Minutes) -> None:
    defs = build_defs(minutes.settings)
    resources = build_resources(minutes.settings)

    def asked(name: str, moment: datetime, *wanted: str):
        schedule = defs.get_schedule_def(name)
        with dg.build_schedule_context(
            scheduled_execution_time=moment, resources={key: resources[key] for key in wanted}
        ) as context:
            return schedule.evaluate_tick(context)

    daily = asked("minutes_daily", datetime(2024, 3, 10, 0, 20, tzinfo=UTC), "lake", "history")
    assert daily.skip_message == f"{LAST} has its labels already"
    none = asked("minutes_daily", datetime(2024, 3, 12, 0, 20, tzinfo=UTC), "lake", "history")
    assert none.skip_message == "neither trades nor imported candles of 2024-03-11"
    retrain = asked("minutes_h5_retrain", datetime(2024, 3, 10, 0, 40, tzinfo=UTC), "lake")
    assert retrain.skip_message == (f"the models of {LAST} are 0 days old as of {LAST}; trained every 3 days")


def test_the_verb_refuses_what_is_no_day_or_no_timescale(
    minutes: Minutes, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = minutes.settings
    with pytest.raises(
        ranges.NothingToDo, match=r"2024-03-01-00:00 is not a day: the minutes are partitioned by"
    ):
        ranges.days_to_fill(settings, "2024-03-01-00:00", LAST, False, False)
    with pytest.raises(
        ranges.NothingToDo, match=r"hours is not a timescale of this configuration: seconds, minut"
    ):
        runs.chain_selection(settings, "hours")
    with pytest.raises(UnknownChain, match=r"minutes_h7 is not a chain of this configuration: seconds, min"):
        spec_of(settings, "minutes_h7")
    with pytest.raises(ranges.NothingToDo, match=r"2024-02-28 is before dagster.minutes_start, 2024-03-01"):
        ranges.days_to_fill(settings, "2024-02-28", LAST, False, False)
    assert ranges.days_to_fill(settings, None, None, False, False) == [(FIRST, LAST)]
    assert ranges.days_to_fill(settings, None, None, True, False) == []
    assert "--timescale minutes --from 2024-01-01" in CliRunner().invoke(backfill, ["--help"]).output


@pytest.fixture
def invoke(minutes: Minutes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a verb of `cryptovol` on the chains of the minutes."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(minutes.settings.model_dump(mode="json", exclude={"kafka"})))
    monkeypatch.setenv("CRYPTOVOL_CONFIG", str(config))
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize(("name", "horizon_s"), [("minutes_h5", 300), ("minutes_h15", 900)])
def test_the_champion_of_a_horizon_scores_the_newest_day(
    minutes: Minutes, invoke, name: str, horizon_s: int
) -> None:
    result = invoke("infer", "--chain", name, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["chain"], found["horizon_s"]) == (name, horizon_s)
    assert found["features"] == f"minutes/features of {LAST}"
    decision = json.loads(minutes.lake.read_bytes(f"{name}/champion", LAST, "json"))
    champion = decision["champion"]
    assert found["model"].startswith(f"{champion['model']} as of {champion['as_of']}")
    model = load_model(minutes.lake.read_bytes(f"{name}/model_{champion['model']}", champion["as_of"], "zip"))
    rows = minutes.lake.read_table("minutes/features", *partition_window(LAST)).to_pandas()
    for row in found["latest"]:
        assert row["bar_end"] == "2024-03-10T00:00:00+00:00"
        own = rows[rows["product"] == row["product"]].tail(1).reindex(columns=list(model.meta.inputs))
        assert row["probability"] == pytest.approx(model.predict_proba(own)[0])


def test_a_model_of_another_horizon_is_refused_and_so_is_an_unknown_chain(minutes: Minutes, invoke) -> None:
    exported = minutes.settings.storage.artifacts_dir / "minutes_h5-ewma.zip"
    for arguments, says in (
        (
            ("infer", "--chain", "minutes_h15", "--model-path", str(exported)),
            "is of minutes_h5, requested is minutes_h15: --chain minutes_h5",
        ),
        (
            ("infer", "--chain", "minute_h5"),
            "minute_h5 is not a chain of this configuration: seconds, minutes_h5, minutes_h15. Did you mean "
            "'minutes_h5'?",
        ),
        (
            ("report", "--chain", "minutes_h7"),
            "minutes_h7 is not a chain of this configuration: seconds, minutes",
        ),
        (
            ("report", "--chain", "minutes_h15", "--data-quality"),
            "minutes_h15 has no data quality report: its bars and features are those of minutes_h5",
        ),
    ):
        result = invoke(*arguments)
        assert result.exit_code == (2 if "not a chain" in says else 1)
        assert says in result.output
        assert len(result.output.strip().splitlines()) == 1


def test_a_report_of_a_horizon_is_of_its_newest_day(invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reports hold is tested beside Evidently; here only what is asked for."""
    asked: list[tuple[str, str, tuple[str, ...]]] = []

    def asked_only(_settings: Settings, first: str, last: str, selection: list[str]) -> None:
        asked.append((first, last, tuple(selection)))
        raise ranges.NothingToDo("asked")

    monkeypatch.setattr(runs, "materialize_range", asked_only)
    for arguments, assets in (
        (("--chain", "minutes_h5"), ("minutes_h5/train_test_report",)),
        (("--chain", "minutes_h15", "--drift"), ("minutes_h15/drift_report",)),
        (("--chain", "minutes_h5", "--data-quality"), ("minutes_h5/data_quality_report",)),
    ):
        assert invoke("report", *arguments).exit_code == 1
        assert asked.pop() == (LAST, LAST, assets)
    assert "no report yet" in invoke("report", "--chain", "minutes_h5", "--list").output
