"""`cryptovol infer`: which model, which rows, where it flags, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from cryptovol_dagster.cli import main
from cryptovol_dagster.core.models import load_model
from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster.inference import benchmark
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster_tests.inference.rows import KEYS, newest_features
from cryptovol_dagster_tests.pipeline import Pipeline
from cryptovol_dagster_tests.synthetic import PRODUCTS


@pytest.fixture(scope="module")
def features(pipeline: Pipeline) -> pd.DataFrame:
    return newest_features(pipeline)


@pytest.fixture
def written(features: pd.DataFrame, tmp_path: Path) -> Path:
    path = tmp_path / "features.parquet"
    features.to_parquet(path)
    return path


def _invoke(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str):
    import yaml

    config = tmp_path / "config.yaml"
    settings = pipeline.settings.model_dump(mode="json", exclude={"kafka"})
    config.write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("CRYPTOVOL_CONFIG", str(config))
    return CliRunner().invoke(main, ["infer", *arguments])


def test_the_champion_scores_the_newest_hour_and_flags_at_its_operating_point(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = _invoke(pipeline, tmp_path, monkeypatch, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["model"].startswith(f"ewma as of {pipeline.hours[0]}")
    assert found["source"] == f"champion by the decision of {pipeline.hours[-1]}"
    assert found["features"] == f"seconds/features of {pipeline.hours[-1]}"
    report = json.loads(pipeline.lake.read_bytes("seconds/model_evaluation", pipeline.hours[0], "json"))
    point = report["models"]["ewma"]["operating_points"]["max_f1"]
    assert found["operating_point"] == (None if point is None else point["threshold"])
    assert [row["product"] for row in found["latest"]] == list(PRODUCTS)
    for row in found["latest"]:
        assert row["bar_end"] == pd.Timestamp(hour_window(pipeline.hours[-1])[1], tz="UTC").isoformat()
        assert row["age_s"] > 0
        assert 0 <= row["probability"] <= 1


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_every_row_is_scored_as_the_model_scores_it_and_an_invalid_one_says_why(
    pipeline: Pipeline,
    features: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    given, out = tmp_path / f"features{suffix}", tmp_path / f"scores{suffix}"
    features.to_csv(given, index=False) if suffix == ".csv" else features.to_parquet(given)
    result = _invoke(
        pipeline, tmp_path, monkeypatch, "--model", "logreg", "--features", str(given), "--out", str(out)
    )
    assert result.exit_code == 0, result.output
    assert f"{PRODUCTS[1]:<9}no prediction (in_gap)" in result.stdout
    scores = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    key, lake = pipeline.hours[-1], pipeline.lake
    model = load_model(lake.read_bytes("seconds/model_logreg", key, "zip"))
    ordered = features.sort_values(["bar_start", "product"], ignore_index=True)
    valid = ordered["valid"].to_numpy(dtype=bool)
    expected = model.predict_proba(ordered.loc[valid].drop(columns=KEYS))
    np.testing.assert_allclose(scores["probability"][valid], expected, rtol=1e-12)
    assert scores["probability"][~valid].isna().all()
    assert (scores["reason"] == "ok").to_numpy().tolist() == valid.tolist()
    report = json.loads(lake.read_bytes("seconds/model_evaluation", key, "json"))
    threshold = report["models"]["logreg"]["operating_points"]["max_f1"]["threshold"]
    assert scores["flag"][valid].astype(bool).tolist() == (expected >= threshold).tolist()
    assert f"flag     probability of at least {threshold:.3f}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--model", "ewma", "--model-path", "x.zip"), 2, "exclude each other"),
        (("--out", "scores.txt"), 2, "scores are written as .parquet or .csv"),
        (("--benchmark", "--out", "scores.csv"), 2, "--benchmark writes no scores"),
        (("--benchmark", "--why"), 2, "--benchmark flags no rows: omit --why"),
        (("--model-path", "nowhere.zip"), 1, "nowhere.zip: cannot be read: No such file"),
        (("--model-path", "{features}"), 1, "not a cryptovol model file"),
        (("--features", "nowhere.parquet"), 1, "nowhere.parquet: cannot be read as features"),
        (("--features", "{config}.csv"), 1, "lacks bar_start, product, valid, reason; expected features as"),
        (("--features", "{words}"), 1, "reason is not a number; expected features of"),
        (("--features", "{fewer}"), 1, "feature columns missing: ln_rv_15"),
        (("--features", "{other}"), 1, "features of version beef, model ewma was trained on version"),
    ],
)
def test_what_does_not_fit_is_one_line(
    pipeline: Pipeline,
    features: pd.DataFrame,
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    fewer, other, config = tmp_path / "fewer.parquet", tmp_path / "other.parquet", tmp_path / "config"
    features.drop(columns="ln_rv_15").to_parquet(fewer)
    config.with_suffix(".csv").write_text("a,b\n1,2\n")
    words = tmp_path / "words.csv"
    features.assign(reason="ok").to_csv(words, index=False)
    lake = Lake(tmp_path / "elsewhere")
    source = pipeline.lake.read_table("seconds/features", *hour_window(pipeline.hours[0]))
    shutil.copy(lake.write_table("f", pipeline.hours[0], source, version="beef"), other)
    known = {"features": written, "fewer": fewer, "other": other, "config": config, "words": words}
    result = _invoke(pipeline, tmp_path, monkeypatch, *(text.format(**known) for text in arguments))
    assert result.exit_code == code, result.output
    assert says in result.output
    assert "Traceback" not in result.output
    assert code == 2 or len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_why_names_the_features_that_moved_each_flagged_row_most(
    pipeline: Pipeline, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """The written row, the JSON and the text state the same shares."""
    out = tmp_path / f"scores{suffix}"
    arguments = ("--model", "xgboost", "--features", str(written), "--why")
    result = _invoke(pipeline, tmp_path, monkeypatch, *arguments, "--json", "--out", str(out))
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    scores = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    is_flagged = scores["flag"].eq(True).fillna(False).astype(bool)
    columns = [f"why_{rank}_{part}" for rank in range(1, 6) for part in ("feature", "value", "log_odds")]
    assert list(scores.columns) == ["bar_start", "product", "probability", "flag", "reason", *columns]
    assert scores.loc[~is_flagged, columns].isna().all(axis=None)
    assert 0 < len(body["why"]) == body["flagged"] == is_flagged.sum()
    for said, (_, row) in zip(body["why"], scores[is_flagged].iterrows(), strict=True):
        assert said["product"] == row["product"]
        assert said["probability"] == pytest.approx(row["probability"])
        shares = [abs(share["log_odds"]) for share in said["contributions"]]
        assert shares == sorted(shares, reverse=True)
        for rank, share in enumerate(said["contributions"], start=1):
            assert share["feature"] == row[f"why_{rank}_feature"]
            assert share["log_odds"] == pytest.approx(row[f"why_{rank}_log_odds"])
            assert share["value"] == (
                pytest.approx(row[f"why_{rank}_value"]) if share["value"] else share["value"]
            )
    text = _invoke(pipeline, tmp_path, monkeypatch, *arguments).stdout
    newest, shown = body["why"][-1], min(10, len(body["why"]))
    assert f"why      {shown} of {len(body['why'])} flagged rows, the newest" in text
    assert f"{newest['product']:<9}{newest['probability']:.4f}  bar end {newest['bar_end']}\n" in text
    share = newest["contributions"][0]
    assert f"{share['log_odds']:>+9.3f}  {share['feature']} = " in text
    assert text.rstrip().endswith(newest["contributions"][-1]["meaning"])


def test_why_of_a_model_without_an_operating_point_is_one_line(
    pipeline: Pipeline, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.zip"
    exported = load_model(pipeline.lake.read_bytes("seconds/model_ewma", pipeline.hours[-1], "zip"))
    exported.meta = replace(exported.meta, problem_hash="of another lake")
    model.write_bytes(exported.to_bytes())
    arguments = ("--model-path", str(model), "--features", str(written), "--why")
    result = _invoke(pipeline, tmp_path, monkeypatch, *arguments)
    assert result.exit_code == 1
    assert (
        "no operating point is stored for ewma, as-of time unknown here: no row is flagged" in result.output
    )
    assert len(result.output.strip().splitlines()) == 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_SECONDS", 0.01), ("_WARM_UP", 1), ("_LIVE_BARS", 5)):
        monkeypatch.setattr(benchmark, name, value)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "backends"),
    [
        ("xgboost", ["onnxruntime", "xgboost inplace_predict"]),
        ("logreg", ["onnxruntime", "numpy, folded logit", "scikit-learn pipeline"]),
    ],
)
def test_the_benchmark_measures_every_back_end_once_they_agree(
    pipeline: Pipeline,
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    backends: list[str],
) -> None:
    arguments = ("--benchmark", "--model", name, "--features", str(written))
    result = _invoke(pipeline, tmp_path, monkeypatch, *arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["benchmark"]
    assert list(found["parity"]) == backends
    for parity in found["parity"].values():
        assert parity["rows"] == found["valid_rows"] > 500
        assert parity["max_difference"] <= 1e-6
    asked = [(call["rows"], call["backend"]) for call in found["calls"]]
    assert asked == [(rows, by) for rows in (1, 16, 256, 1_000) for by in (*backends, benchmark.MODEL)]
    for call in (*found["calls"], found["live"]):
        assert 0 < call["p50_ms"] <= call["p90_ms"] <= call["p99_ms"]
    assert found["live"]["rows_a_bar"] == len(PRODUCTS)
    assert found["within_target"] == (found["calls"][0]["p99_ms"] <= 0.1)
    assert {"cpu", "python", "onnxruntime", "xgboost"} <= set(found["machine"])
    text = _invoke(pipeline, tmp_path, monkeypatch, *arguments).stdout
    assert "parity   onnxruntime: |Δp| at most " in text
    assert "ticks of a bar → p " in text
    assert "the target: one row by onnxruntime, p99 at most 0.1 ms" in text


@pytest.mark.usefixtures("quick")
def test_back_ends_that_differ_give_no_number(
    pipeline: Pipeline, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = benchmark.backends_of
    monkeypatch.setattr(
        benchmark, "backends_of", lambda model: {"a liar": lambda X: honest(model)["onnxruntime"](X) / 2}
    )
    result = _invoke(pipeline, tmp_path, monkeypatch, "--benchmark", "--features", str(written))
    assert result.exit_code == 1
    assert "model ewma: a liar gives " in result.output
    assert "p50" not in result.output
