"""Walk-forward over synthetic rows: which folds there are, what is named, that the past is all it sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from cryptovol_dagster.core.cards.backtest_card import render_backtest_card
from cryptovol_dagster.core.evaluation.backtest import best_single_feature, fold_ends, fold_rows, walk_forward
from cryptovol_dagster.core.learning.dataset import Dataset
from cryptovol_dagster.core.learning.errors import LearningError
from cryptovol_dagster.core.metrics.ranking import average_precision
from cryptovol_dagster.core.pictures import evaluation as plots
from cryptovol_dagster.core.pictures.backtest import draw_backtest
from cryptovol_dagster.core.specs import DAY_S, NS, ModelSpec, TimescaleSpec
from cryptovol_dagster_tests.core.clustered_market import MODEL_SPEC, SPEC

MODELS = ("persistence", "ewma", "xgboost")
MINUTES: TimescaleSpec = replace(
    SPEC,
    name="minutes_h5",
    grid="minutes",
    bar_interval_s=60,
    partition_s=DAY_S,
    horizon_bars=5,
    target="gk",
    retrain_every=2,
    retrain_phase=1,
    splits=replace(SPEC.splits, train_span_s=4 * DAY_S, test_span_s=2 * DAY_S),
)
DAYS = 12
#: A whole number of days whose count from the epoch is even.
START_NS = 19_800 * DAY_S * NS


def model_spec() -> ModelSpec:
    return replace(MODEL_SPEC, xgboost_trees=10, bootstrap_resamples=20)


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """Twelve days of one product whose log volatility remembers an hour."""
    random = np.random.default_rng(5)
    n = DAYS * 1_440
    level, noise = np.empty(n), random.normal(0, 0.2, n)
    level[0] = 0.0
    for k in range(1, n):
        level[k] = 0.98 * level[k - 1] + noise[k]
    ahead = np.append(level[5:], np.full(5, np.nan))
    known = ~np.isnan(ahead)
    features = pd.DataFrame(
        {
            "ln_gk_5": level + random.normal(0, 0.5, n),
            "ln_ewma_gk_20": level + random.normal(0, 0.4, n),
            "noise": random.normal(size=n),
        }
    ).astype(np.float32)
    t_ns = START_NS + (1 + np.arange(n)) * 60 * NS
    return Dataset(
        features=features.iloc[:-5],
        product=np.full(int(known.sum()), "BTC-USD", dtype=object),
        t_ns=t_ns[known],
        sigma=1e-3 * np.exp(ahead[known]),
        trailing_sigma=1e-3 * np.exp(level[known]),
        bar_ns=60 * NS,
        horizon_bars=5,
        target="gk",
    )


def ends() -> tuple[int, ...]:
    return fold_ends(START_NS, START_NS + DAYS * DAY_S * NS, MINUTES)


def test_folds_end_where_a_run_over_a_range_trains_and_have_their_whole_spans() -> None:
    found = [(end - START_NS) / (DAY_S * NS) for end in ends()]
    # As of an odd day, that is at the end of the second of each two days; six days are needed.
    assert found == [6, 8, 10, 12]
    assert fold_ends(START_NS, START_NS + 5 * DAY_S * NS, MINUTES) == ()


def test_numbers_are_of_the_test_rows_of_all_folds(rows: Dataset) -> None:
    told: list[tuple[int, int, str]] = []
    early = START_NS + 5 * DAY_S * NS  # a day too few
    found = walk_forward(
        rows, MINUTES, model_spec(), ends=(early, *ends()), feature_hash="f", models=MODELS,
        progress=lambda *one: told.append(one),
    )  # fmt: skip
    report, test = found.report, found.predictions
    assert [fold["as_of"] for fold in report["folds"]] == [
        "2024-03-23",
        "2024-03-25",
        "2024-03-27",
        "2024-03-29",
    ]
    assert [one["as_of"] for one in report["skipped"]] == ["2024-03-22"]
    assert report["skipped"][0]["reason"].startswith(
        "3.0 of 4 days of training in BTC-USD 2024-03-18T00:01:00Z"
    )
    assert told[0] == (1, 5, "2024-03-23 persistence")
    y, onset = test["y"].to_numpy(), test["onset"].to_numpy()
    assert report["test"]["positives"] == y.sum()
    for name in MODELS:
        quality = report["models"][name]
        score = test[name].to_numpy()
        assert quality["average_precision"] == pytest.approx(average_precision(y, score))
        assert quality["onset_average_precision"] == pytest.approx(average_precision(y[onset], score[onset]))
        own = [fold["models"][name]["average_precision"] for fold in report["folds"]]
        assert quality["mean_over_folds"] == pytest.approx(np.mean(own))
        assert quality["interval"]["low"] <= quality["average_precision"] <= quality["interval"]["high"]
    assert sum(month["rows"] for month in report["by_month"]) == len(test)
    assert best_single_feature(report) == "ewma"
    pairs = [(one["model"], one["baseline"]) for one in report["comparisons"]]
    assert pairs == [("ewma", "persistence"), ("xgboost", "persistence"), ("xgboost", "ewma")]
    first, *others = report["single_columns"]
    assert [one["column"] for one in (first, *others)] == ["ln_ewma_gk_20", "ln_gk_5", "noise"]
    column = column_of(rows, test, "ln_ewma_gk_20")
    assert first["average_precision"] == pytest.approx(average_precision(y, column))
    assert first["onset_average_precision"] == pytest.approx(average_precision(y[onset], column[onset]))
    folds = test["fold"].to_numpy()
    own = [average_precision(y[folds == k], column[folds == k]) for k in range(len(report["folds"]))]
    assert first["mean_over_folds"] == pytest.approx(np.mean(own))
    over = {one["model"]: one for one in report["over_best_column"]}
    assert {one["baseline"] for one in over.values()} == {"ln_ewma_gk_20"}
    learned = report["models"]["xgboost"]["average_precision"]
    assert over["xgboost"]["ap_difference"] == pytest.approx(learned - first["average_precision"])
    assert (
        over["xgboost"]["interval"]["low"]
        <= over["xgboost"]["ap_difference"]
        <= over["xgboost"]["interval"]["high"]
    )
    card = render_backtest_card([{**report, "holdout": False, "holdout_looks": 0}])
    assert f"| xgboost | {report['models']['xgboost']['average_precision']:.3f} [" in card
    assert "not tested: " in card


def column_of(rows: Dataset, test: pd.DataFrame, name: str) -> NDArray[np.float64]:
    at = np.searchsorted(rows.t_ns, test["t"].astype("datetime64[ns, UTC]").astype(np.int64))
    return rows.features[name].to_numpy(dtype=np.float64)[at]


def test_a_fold_sees_nothing_after_its_day(rows: Dataset) -> None:
    end = ends()[1]
    until = fold_rows(rows, end, MINUTES)
    assert until.t_ns.max() == end - 5 * 60 * NS
    first = rows.slice(0, int(np.searchsorted(rows.t_ns, end - 5 * 60 * NS, side="right")))
    whole = walk_forward(rows, MINUTES, model_spec(), ends=[end], feature_hash="f", models=MODELS)
    alone = walk_forward(first, MINUTES, model_spec(), ends=[end], feature_hash="f", models=MODELS)
    pd.testing.assert_frame_equal(whole.predictions, alone.predictions)
    assert whole.report["folds"] == alone.report["folds"]


def test_a_fold_without_spikes_is_named_and_its_rows_count(rows: Dataset) -> None:
    end = ends()[-1]
    sigma = rows.sigma.copy()
    sigma[rows.t_ns > end - int(2.1 * DAY_S) * NS] = 1e-6
    calm = replace(rows, sigma=sigma)
    found = walk_forward(calm, MINUTES, model_spec(), ends=ends()[-2:], feature_hash="f", models=MODELS)
    assert [fold["reason"] for fold in found.report["folds"]] == ["", "its test holds no positives"]
    for name in MODELS:
        assert found.report["folds"][-1]["models"][name]["average_precision"] is None
    assert found.report["test"]["rows"] == len(found.predictions)


def test_pictures_are_of_the_pooled_rows_and_say_how_many_spikes_they_show(
    rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = walk_forward(rows, MINUTES, model_spec(), ends=ends(), feature_hash="f", models=MODELS)
    written: list[str] = []
    write = plots.title
    monkeypatch.setattr(
        plots, "title", lambda axes, *text: (written.append("\n".join(text)), write(axes, *text))
    )
    drawn = draw_backtest(found)
    assert list(drawn) == [
        "by_month", "precision_recall", "precision_recall_onset", "reliability", "gain_xgboost",
    ]  # fmt: skip
    assert all(picture.startswith(b"\x89PNG") for picture in drawn.values())
    test = found.predictions
    everything = f"{len(test):,} rows, {test['y'].sum():,} spikes"
    assert all(everything in text for text in written[:4])
    onset = test[test["onset"]]
    assert 0 < onset["y"].sum() < test["y"].sum()
    assert f"; of these {len(onset):,} rows and {onset['y'].sum():,} spikes at onset" in written[2]
    gain = found.report["gain"]["xgboost"]
    assert sum(share["mean"] for share in gain.values()) == pytest.approx(1.0)
    assert set(gain) == {"ln_gk_5", "ln_ewma_gk_20", "noise"}
    assert list(gain) == sorted(gain, key=lambda name: -gain[name]["mean"])
    assert all(share["least"] <= share["mean"] <= share["most"] for share in gain.values())
    assert "trained 4 times, each on 4 days, BTC-USD, as of 2024-03-23 … 2024-03-29" in written[4]


def test_a_curve_of_many_rows_is_thinned_to_what_can_be_seen() -> None:
    random = np.random.default_rng(3)
    score = random.random(20_000)
    y = random.random(20_000) < score**3
    recall, precision = plots._steps(y, score)  # pyright: ignore[reportPrivateUsage] - a picture shows it only
    assert recall.size < 2_100
    assert (recall[0], recall[-1]) == (0.0, 1.0)
    area = float(np.sum(np.diff(recall) * precision[1:]))
    assert area == pytest.approx(average_precision(y, score), abs=2e-3)


def test_where_no_fold_can_be_tested_the_reasons_are_told(rows: Dataset) -> None:
    flat = replace(rows, sigma=np.full(len(rows), 1e-3))
    with pytest.raises(
        LearningError, match=r"no fold of BTC-USD .* can be tested \(2024-03-25: degenerate spi"
    ):
        walk_forward(flat, MINUTES, model_spec(), ends=[ends()[1]], feature_hash="f", models=("ewma",))


def test_the_card_takes_its_facts_from_the_reports(rows: Dataset) -> None:
    found = walk_forward(rows, MINUTES, model_spec(), ends=ends()[:1], feature_hash="f", models=MODELS)
    report = {**found.report, "holdout": False, "holdout_looks": 0}
    card = render_backtest_card([report])
    assert "at or over the 0.9 quantile of the training span (4 days), per product" in card
    assert "train on 4 days, leave out H and an embargo, test on the next 2 days" in card
    assert "(persistence, ewma) are fitted" in card
    assert "* Tested on BTC-USD alone; another market" in card
    assert "* xgboost over ewma (the best model of a single feature): AP" in card
    other = report | {
        "quantile": 0.95,
        "train_span_s": 30 * DAY_S,
        "data": report["data"] | {"products": ["ETH-USD"]},
    }
    both = render_backtest_card([report, other])
    assert "the 0.9 or 0.95 quantile of the training span (4 or 30 days)" in both
    assert "* Tested on BTC-USD, ETH-USD alone" in both
