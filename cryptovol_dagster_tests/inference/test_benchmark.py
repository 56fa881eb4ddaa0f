"""The latency benchmark: which back ends, that they agree, and when it refuses to measure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cryptovol_dagster.core.models import train_model
from cryptovol_dagster.core.models.onnx import ParityError
from cryptovol_dagster.inference import benchmark
from cryptovol_dagster.inference.scorer import FeatureRows, InferError, Scorer
from cryptovol_dagster_tests.core.clustered_market import (
    MODEL_SPEC,
    SPEC,
    make_bars,
    make_features,
    make_problem,
)

N_BARS = 3_000


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    model = train_model("logreg", make_problem(N_BARS, seed=2), SPEC, MODEL_SPEC, feature_hash="f00d")
    return Scorer(model, "a test", "logreg", None)


@pytest.fixture(scope="module")
def rows() -> FeatureRows:
    features = make_features(make_bars(N_BARS, seed=2))
    return FeatureRows(features, "a test's rows", "f00d")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_SECONDS", 0.01), ("_WARM_UP", 1)):
        monkeypatch.setattr(benchmark, name, value)


@pytest.mark.usefixtures("quick")
def test_every_back_end_is_timed_at_every_size(rows: FeatureRows, scorer: Scorer) -> None:
    found = benchmark.measure(rows, scorer, SPEC)
    backends = [*benchmark.backends_of(scorer.model), benchmark.MODEL]
    assert found["valid_rows"] == rows.frame["valid"].sum()
    assert [(call["rows"], call["backend"]) for call in found["calls"]] == [
        (batch, backend) for batch in benchmark.BATCHES for backend in backends
    ]
    # No live row has the test's own column, and a logistic regression cannot do without it.
    assert found["live"] is None


def test_a_chain_of_candles_has_no_live_step(rows: FeatureRows, scorer: Scorer) -> None:
    onnx = benchmark.backends_of(scorer.model)[benchmark.ONNX]
    assert benchmark._live(scorer.model, onnx, replace(SPEC, quotes=False)) is None


def test_nothing_is_measured_without_a_row_that_may_be_scored(rows: FeatureRows, scorer: Scorer) -> None:
    none = replace(rows, frame=rows.frame.assign(valid=False))
    with pytest.raises(InferError, match="a test's rows: no row may be scored"):
        benchmark.measure(none, scorer, SPEC)


def test_nothing_is_measured_while_back_ends_differ(
    rows: FeatureRows, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = benchmark.backends_of(scorer.model)[benchmark.ONNX]
    monkeypatch.setattr(benchmark, "backends_of", lambda model: {"half": lambda X: honest(X) / 2})
    with pytest.raises(ParityError, match="half"):
        benchmark.measure(rows, scorer, SPEC)


def test_rows_of_another_feature_set_are_refused(rows: FeatureRows, scorer: Scorer) -> None:
    with pytest.raises(InferError, match="features of version beef, model logreg"):
        benchmark.measure(replace(rows, version="beef"), scorer, SPEC)
