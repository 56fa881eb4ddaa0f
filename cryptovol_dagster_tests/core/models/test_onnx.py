"""ONNX graphs say what the models say: on any trees, any rows, whatever is unknown or far away."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster.core.learning.dataset import Dataset
from cryptovol_dagster.core.models import MODELS, Model, ModelError
from cryptovol_dagster.core.models.onnx import MAX_DIFFERENCE, OnnxScorer, ParityError, compare, to_onnx
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster_tests.core.leaks.bars import SMALL

COLUMNS = ("ln_ewma_rv_5", "ln_ewma_rv_60", "ln_rv_15", "ln_rv_60", "noise")
EXTREMES = np.array([0.0, -0.0, 1e-38, -1e-38, 3e38, -3e38, np.nan], dtype=np.float32)


def dataset(random: np.random.Generator, rows: int, unknown: float) -> tuple[Dataset, np.ndarray]:
    values = np.round(random.normal(size=(rows, len(COLUMNS))), 1).astype(np.float32)
    y = values[:, 0] + random.normal(size=rows) > 0.5
    values[random.random(values.shape) < unknown] = np.nan
    features = pd.DataFrame(values, columns=list(COLUMNS))
    return Dataset(
        features=features,
        product=np.full(rows, "BTC-USD", dtype=object),
        t_ns=np.arange(rows) * NS,
        sigma=np.ones(rows),
        trailing_sigma=np.ones(rows),
        bar_ns=NS,
        horizon_bars=15,
        optional=frozenset(COLUMNS),
    ), y


def fitted(name: str, seed: int, unknown: float = 0.2) -> Model:
    rows, y = dataset(np.random.default_rng(seed), 300, unknown)
    return MODELS[name]().fit(rows, y, rows, y, SMALL)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    unknown=st.sampled_from([0.0, 0.1, 0.6]),
    name=st.sampled_from(["xgboost", "xgboost", "logreg"]),
)
def test_the_graph_says_what_the_model_says_on_any_row(seed: int, unknown: float, name: str) -> None:
    random = np.random.default_rng(seed)
    model = fitted(name, seed, unknown)
    rows, _ = dataset(random, 200, 0.3)
    values = rows.features.to_numpy().copy()
    extreme = random.random(values.shape) < 0.1
    # Sums of a logit over 3e38 are beyond any parity: of two infinities nobody knows the sum.
    reach = EXTREMES if name == "xgboost" else EXTREMES[[0, 1, 2, 3, 6]]
    values[extreme] = random.choice(reach, int(extreme.sum()))
    features = pd.DataFrame(values, columns=list(COLUMNS))
    expected = model.predict_proba(features)
    threshold = float(np.quantile(expected, 0.9))
    parity = compare(model, "onnxruntime", OnnxScorer(to_onnx(model)).predict, features, threshold)
    assert parity.rows == 200
    assert parity.max_difference <= MAX_DIFFERENCE
    # Few trees give few scores, and the threshold may be one of them: there the last bit decides.
    assert parity.flags_differ <= np.sum(np.abs(expected - threshold) <= MAX_DIFFERENCE)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_kind_of_model_has_a_graph_and_it_knows_what_it_is(name: str) -> None:
    model = fitted(name, 3)
    scorer = OnnxScorer(to_onnx(model, {"parity": "untold"}))
    rows, _ = dataset(np.random.default_rng(4), 50, 0.2)
    assert compare(model, "onnxruntime", scorer.predict, rows.features).rows == 50
    assert scorer.notes["name"] == name
    assert json.loads(scorer.notes["features"]) == list(model.meta.features)
    assert scorer.notes["horizon_s"] == "15"
    assert scorer.notes["parity"] == "untold"


def test_the_order_of_the_callers_columns_is_no_matter() -> None:
    model = fitted("xgboost", 5)
    scorer = OnnxScorer(to_onnx(model))
    rows, _ = dataset(np.random.default_rng(6), 50, 0.2)
    turned = rows.features[list(reversed(COLUMNS))]
    assert np.array_equal(scorer.predict(model.matrix(turned)), scorer.predict(model.matrix(rows.features)))


def test_another_models_graph_is_found_out() -> None:
    rows, _ = dataset(np.random.default_rng(7), 80, 0.2)
    model, other = fitted("xgboost", 8), fitted("xgboost", 9)
    with pytest.raises(
        ParityError, match=r"model xgboost: onnxruntime gives .* they may differ by 1e-06 at most"
    ):
        compare(model, "onnxruntime", OnnxScorer(to_onnx(other)).predict, rows.features)


def test_a_flag_that_turns_is_found_out_though_the_probabilities_are_near() -> None:
    rows, _ = dataset(np.random.default_rng(7), 80, 0.2)
    model = fitted("logreg", 8)
    expected = model.predict_proba(rows.features)
    at = float(np.median(expected))
    edge = np.abs(expected - at) <= MAX_DIFFERENCE
    assert not edge.any()

    def nan_for_the_first(X: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(X)) == 0, np.nan, expected)

    with pytest.raises(ParityError, match="model logreg: a stub gives nan for row 0, the model itself 0"):
        compare(model, "a stub", nan_for_the_first, rows.features, at)
    near = np.sort(expected)[[39, 40]]
    scores = np.where(expected == near[0], near[0] + MAX_DIFFERENCE / 2, expected)
    parity = compare(model, "a stub", lambda X: scores, rows.features, float(near[0] + MAX_DIFFERENCE / 4))
    assert parity.flags_differ == 1  # on the edge: told, not refused


def test_a_model_that_is_not_fitted_has_none() -> None:
    with pytest.raises(ModelError, match="model logreg has not been fitted"):
        to_onnx(MODELS["logreg"]())
