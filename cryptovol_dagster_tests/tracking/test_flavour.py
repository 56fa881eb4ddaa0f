"""Our model file as an MLflow model: written without pickle, loaded by MLflow, the same probabilities."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.core.learning.dataset import Problem
from cryptovol_dagster.core.models import Model, ModelError, train_model
from cryptovol_dagster.tracking.flavour import write_mlflow_model
from cryptovol_dagster_tests.core.clustered_market import MODEL_SPEC, SPEC, make_problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(3_000, seed=2)


@pytest.fixture(scope="module")
def model(problem: Problem) -> Model:
    return train_model("ewma", problem, SPEC, MODEL_SPEC, feature_hash="f00d")


@pytest.fixture(scope="module")
def rows(problem: Problem, model: Model) -> pd.DataFrame:
    features = problem.part(problem.split.test)[0].features
    return features[list(model.meta.inputs)].astype("float64")


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlflow") / "model"
    write_mlflow_model(model.to_bytes(), folder)
    return folder


def test_mlflow_loads_it_and_it_scores_the_same(written: Path, model: Model, rows: pd.DataFrame) -> None:
    loaded = mlflow.pyfunc.load_model(str(written))
    np.testing.assert_array_equal(loaded.predict(rows), model.predict_proba(rows))


def test_it_says_what_it_is_and_what_it_needs(written: Path, model: Model) -> None:
    metadata = mlflow.models.Model.load(str(written))
    assert metadata.get_input_schema().input_names() == list(model.meta.inputs)
    assert metadata.metadata["feature_hash"] == "f00d"
    needed = (written / "requirements.txt").read_text().splitlines()
    assert f"cryptovol=={version('cryptovol')}" in needed
    assert not [*written.rglob("*.pkl")]


def test_bytes_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        write_mlflow_model(b"no model", tmp_path / "model")
    assert not (tmp_path / "model").exists()
