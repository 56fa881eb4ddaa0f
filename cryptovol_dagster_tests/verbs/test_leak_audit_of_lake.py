"""`cryptovol leak-audit --as-of`: what lies in the lake is clean, and what was tampered with is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from cryptovol_dagster.cli import main
from cryptovol_dagster.core.leaks.detectors import DETECTORS
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster_tests.pipeline import Pipeline


def invoke(pipeline: Pipeline, data_dir: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    settings = pipeline.settings
    storage = settings.storage.model_copy(update={"data_dir": data_dir})
    config = data_dir / "config.yaml"
    moved = settings.model_copy(update={"storage": storage})
    config.write_text(yaml.safe_dump(moved.model_dump(mode="json", exclude={"kafka"})))
    monkeypatch.setenv("CRYPTOVOL_CONFIG", str(config))
    return CliRunner().invoke(main, ["leak-audit", *arguments])


@pytest.fixture
def data_dir(pipeline: Pipeline, tmp_path: Path) -> Path:
    shutil.copytree(pipeline.settings.storage.lake_dir, tmp_path / "lake")
    return tmp_path


def test_every_hour_that_was_trained_is_clean(
    pipeline: Pipeline, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for as_of in ("newest", pipeline.hours[0]):
        result = invoke(pipeline, data_dir, monkeypatch, "--as-of", as_of, "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["passed"]
        assert [row["detector"] for row in found["findings"]] == [each.__name__ for each in DETECTORS]
        assert found["as_of"] == (pipeline.hours[-1] if as_of == "newest" else as_of)
    text = invoke(pipeline, data_dir, monkeypatch, "--as-of", "newest").output
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(
        line.startswith("scaler clean means of baseline_zscore, ewma, har_logit, logreg are those of")
        for line in lines
    )
    assert text.splitlines()[-1] == "no leak found"


def test_an_operating_point_from_elsewhere_is_found(
    pipeline: Pipeline, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, key = Lake(data_dir / "lake"), pipeline.hours[-1]
    report = json.loads(lake.read_bytes("seconds/model_evaluation", key, "json"))
    report["models"]["ewma"]["operating_points"]["max_f1"] = {"threshold": 0.5}
    lake.write_bytes("seconds/model_evaluation", key, json.dumps(report).encode(), "json")
    result = invoke(pipeline, data_dir, monkeypatch, "--as-of", key)
    assert result.exit_code == 1
    assert any(
        line.startswith("operating_point LEAK ewma flags from 0.5 on; validation rows would have chosen ")
        for line in (" ".join(line.split()) for line in result.output.splitlines())
    )
    assert result.output.splitlines()[-1] == "A LEAK WAS FOUND"


def test_what_is_not_there_is_one_line(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, code, says in (
        (("--as-of", "newest"), 1, "has no evaluation yet: run `cryptovol evaluate`"),
        (("--as-of", pipeline.hours[0]), 1, "seconds/splits"),
        (("--as-of", "newest", "--bars", "x.parquet"), 2, "they exclude each other"),
    ):
        result = invoke(pipeline, tmp_path, monkeypatch, *arguments)
        assert result.exit_code == code, result.output
        assert says in result.output
        assert code == 2 or len(result.output.strip().splitlines()) == 1
