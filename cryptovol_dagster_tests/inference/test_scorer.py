"""Finding a model, reading rows, and scoring what two writers of one feature set wrote."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.core.evaluation.report import read_report
from cryptovol_dagster.core.features.catalogue import optional_feature_names
from cryptovol_dagster.core.models import load_model
from cryptovol_dagster.inference.scorer import (
    FeatureRows,
    InferError,
    Scorer,
    find_scorer,
    read_features,
    score,
)
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster_tests.inference.rows import KEYS, newest_features
from cryptovol_dagster_tests.pipeline import Pipeline
from cryptovol_dagster_tests.synthetic import small_settings


def test_without_a_champion_an_exported_model_serves_and_says_so(pipeline: Pipeline, tmp_path: Path) -> None:
    spec = timescale_spec(pipeline.settings.timescales.seconds, "seconds")
    lake, storage = Lake(tmp_path / "lake"), pipeline.settings.storage
    reports = Reports(tmp_path, storage.artifacts_dir)
    scorer = find_scorer(lake, spec, reports, name=None, path=None)
    exported = storage.artifacts_dir / "seconds-ewma.zip"
    assert scorer.source == f"exported model {exported}, there is no champion yet"
    assert (scorer.model.name, scorer.threshold) == ("ewma", None)
    assert scorer.version == "ewma, as-of time unknown here"
    empty = Reports(tmp_path, tmp_path)
    for name, says in (
        (None, f"there is no champion yet and {tmp_path} has no model"),
        ("champion", "there is no champion yet: `cryptovol evaluate` decides"),
        ("ewma", f"{tmp_path}/seconds-ewma.zip: no such model; none was exported yet. `cryptovol evaluate`"),
    ):
        with pytest.raises(InferError, match=says):
            find_scorer(lake, spec, empty, name=name, path=None)
    minutes = dataclasses.replace(spec, name="minutes_h5")
    for name in (None, "champion"):
        with pytest.raises(InferError, match="`cryptovol evaluate --chain minutes_h5`"):
            find_scorer(lake, minutes, empty, name=name, path=None)


def test_a_model_comes_with_the_threshold_and_the_episode_rule_of_its_evaluation(pipeline: Pipeline) -> None:
    spec = timescale_spec(pipeline.settings.timescales.seconds, "seconds")
    reports = Reports(pipeline.settings.storage.reports_dir, pipeline.settings.storage.artifacts_dir)
    scorer = find_scorer(pipeline.lake, spec, reports, name="xgboost", path=None)
    content = pipeline.lake.read_bytes("seconds/model_evaluation", pipeline.hours[-1], "json")
    result = read_report(content).models["xgboost"]
    assert result.operating_points.max_f1 is not None
    assert result.episode_rule is not None
    assert scorer.threshold == result.operating_points.max_f1.threshold
    assert scorer.episode_rule == result.episode_rule.rule


def test_a_model_that_is_not_there_names_those_that_are(pipeline: Pipeline) -> None:
    spec = timescale_spec(pipeline.settings.timescales.seconds, "seconds")
    reports = Reports(pipeline.settings.storage.reports_dir, pipeline.settings.storage.artifacts_dir)
    there = "exported are baseline_zscore, ewma, har_logit, logreg, xgboost."
    for name, hint in (
        ("lgbm", " `cryptovol evaluate` exports models."),
        ("xgbost", " Did you mean 'xgboost'?"),
    ):
        with pytest.raises(InferError, match="no such model") as refused:
            find_scorer(pipeline.lake, spec, reports, name=name, path=None)
        assert str(refused.value).endswith(there + hint)


def test_a_lake_without_features_names_the_way_out(tmp_path: Path) -> None:
    settings = small_settings(tmp_path)
    spec = timescale_spec(settings.timescales.seconds, "seconds")
    with pytest.raises(InferError, match="has no features yet: name a file with --features"):
        read_features(Lake(settings.storage.lake_dir), spec, None)


def test_two_writers_of_one_feature_set_may_differ_in_optional_columns(pipeline: Pipeline) -> None:
    features = newest_features(pipeline)
    spec = timescale_spec(pipeline.settings.timescales.seconds, "seconds")
    content = pipeline.lake.read_bytes("seconds/model_logreg", pipeline.hours[-1], "zip")
    scorer = Scorer(load_model(content), "a test", "logreg", None)
    optional = sorted(optional_feature_names(spec).intersection(features.columns))
    valid = features["valid"].to_numpy(dtype=bool)
    # Live rows lack some, and a file may hold what training had left out.
    given = features.drop(columns=optional).assign(left_out_by_training=1.0)
    rows = FeatureRows(given, "live rows", scorer.model.meta.feature_hash)
    scores = score(rows, scorer)
    unknown = features.loc[valid].drop(columns=KEYS).assign(**dict.fromkeys(optional, np.nan))
    by_time = features.loc[valid].sort_values(["bar_start", "product"]).index
    expected = pd.Series(scorer.model.predict_proba(unknown), index=features.index[valid])[by_time]
    np.testing.assert_allclose(scores.loc[scores["reason"] == "ok", "probability"], expected, rtol=1e-12)
    with pytest.raises(
        InferError, match=r"feature columns missing: .*; feature columns unknown to the model"
    ):
        score(FeatureRows(given, "a file of no version", None), scorer)
