"""Two real hours through the whole of learning: the honest answer is that they are too few."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.chains import model_spec, timescale_spec
from cryptovol_dagster.core.evaluation.evaluate import evaluate
from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.leaks.audit import audit_leaks
from cryptovol_dagster.core.leaks.ladder import HONEST, LEAKS, Study
from cryptovol_dagster.core.learning.dataset import Problem, pose_problem
from cryptovol_dagster.core.market.bars import BarGrid, build_bars
from cryptovol_dagster.core.market.cleaning import clean_ticks
from cryptovol_dagster.core.market.ticks import TickColumns
from cryptovol_dagster.core.models import MODELS, train_model
from cryptovol_dagster.core.specs import NS
from ingestor.recordings.reader import iter_recording
from ingestor.settings.sections import Settings

SPEC = timescale_spec(Settings().timescales.seconds, "seconds")
MODEL_SPEC = model_spec(Settings().models)
HOUR_NS = 3_600 * NS
#: Leaks that published results of 0.9 and more stand on.
FAMOUS = ("random split", "previous row's label", "label of the present")


@pytest.fixture(scope="module")
def bars(recordings: Path) -> BarGrid:
    chunks = iter_recording(recordings / "btc_eth_2026-04-04_2h.ndjson.gz")
    ticks = TickColumns.concat([TickColumns.from_arrays(chunk) for chunk in chunks])
    ticks = clean_ticks(ticks, round(SPEC.late_after_s * NS)).ticks
    start_ns = int(ticks.event_time_ns.min()) // HOUR_NS * HOUR_NS
    return build_bars(ticks, start_ns=start_ns, end_ns=start_ns + 3 * HOUR_NS, spec=SPEC)


@pytest.fixture(scope="module")
def problem(bars: BarGrid) -> Problem:
    return Study(bars, SPEC, MODEL_SPEC, HONEST).problem


def test_two_real_hours_are_told_to_be_too_few(problem: Problem) -> None:
    version = feature_hash(SPEC)
    models = {name: train_model(name, problem, SPEC, MODEL_SPEC, feature_hash=version) for name in MODELS}
    evaluation = evaluate(problem, models, SPEC, MODEL_SPEC, data_hash="recorded", feature_hash=version)
    assert len(problem.dataset) > 12_000
    assert evaluation.verdict == "insufficient_data"
    results = evaluation.to_dict()["models"]
    assert all(result["average_precision_interval"] is None for result in results.values())
    # Persistence knows next to nothing about the next minute of these two hours.
    assert results["baseline_zscore"]["lift"] < 1.3


def test_a_label_of_the_present_would_stand_out(problem: Problem) -> None:
    """The classic leak: judged by the minute just gone, the same baseline looks brilliant."""
    dataset = problem.dataset.rows(np.isfinite(problem.dataset.trailing_sigma))
    present = pose_problem(replace(dataset, sigma=dataset.trailing_sigma), problem.split, SPEC)
    model = train_model("baseline_zscore", present, SPEC, MODEL_SPEC, feature_hash=feature_hash(SPEC))
    test, y = present.part(present.split.test)
    score = model.predict_proba(test.features)
    by_product = pd.DataFrame({"product": test.product, "y": y, "score": score}).groupby("product")
    for _, own in by_product:
        assert own.loc[own["y"], "score"].min() >= own.loc[~own["y"], "score"].max()


def test_leaks_turn_two_hours_without_skill_into_a_brilliant_result_and_are_caught(bars: BarGrid) -> None:
    few_trees = replace(MODEL_SPEC, xgboost_trees=60, xgboost_learning_rate=0.15, bootstrap_resamples=10)
    famous = [leak for leak in LEAKS if leak.name in FAMOUS]
    honest, *leaking = audit_leaks(bars, SPEC, few_trees, leaks=famous)
    assert honest.passed, honest.findings
    assert honest.rung.lift < 2
    assert [verdict.rung.name for verdict in leaking] == list(FAMOUS)
    for verdict in leaking:
        assert verdict.passed, verdict.findings
        assert verdict.rung.lift > 4 * honest.rung.lift, verdict.rung
