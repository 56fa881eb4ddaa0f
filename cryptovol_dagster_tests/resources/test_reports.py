"""Latest copies, the Dagster home, and what Evidently is never shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.resources.evidently_report import EvidentlyError, train_test_report
from cryptovol_dagster.resources.instance import InstanceError, ensure_dagster_home
from cryptovol_dagster.resources.reports import ReportError, Reports
from cryptovol_dagster_tests.defs.synthetic import small_settings


def _frame(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"a": np.linspace(0, 1, 40), **columns})


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        (_frame(b=1.0), _frame(), "differ in columns: b"),
        (_frame(), _frame().iloc[:0], "test has no rows"),
        (_frame(b="x"), _frame(b="x"), "not numeric in training: b"),
        (_frame().assign(a=np.nan), _frame(), "no column has a value in both"),
    ],
)
def test_frames_that_evidently_would_stumble_over_are_refused(
    train: pd.DataFrame, test: pd.DataFrame, says: str
) -> None:
    with pytest.raises(EvidentlyError, match=says):
        train_test_report(train, test, max_rows=10, seed=1)


def test_a_moved_column_is_flagged_an_empty_one_left_out_and_rows_are_bounded() -> None:
    random = np.random.default_rng(3)
    train = pd.DataFrame({"same": random.normal(size=900), "moved": random.normal(size=900), "none": np.nan})
    test = pd.DataFrame({"same": random.normal(size=300), "moved": random.normal(size=300) + 3, "none": 1.0})
    report = train_test_report(train, test, max_rows=500, seed=1)
    assert report.drifted == ("moved",)
    assert report.left_out == ("none",)
    assert (report.rows_train, report.rows_test) == (500, 300)
    assert b"<html" in report.html[:2000].lower()


def test_an_unwritable_report_is_named(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file where a folder should be")
    reports = Reports(tmp_path / "reports", tmp_path / "artifacts")
    with pytest.raises(ReportError, match=r"model_eval\.json: cannot be written"):
        reports.write(reports.evaluation, b"{}")


def test_the_dagster_home_is_made_once_and_then_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = small_settings(tmp_path)
    home = ensure_dagster_home(settings)
    assert home == settings.storage.data_dir / "dagster_home"
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    assert ensure_dagster_home(settings) == home
    assert (home / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "elsewhere"))
    assert ensure_dagster_home(settings) == tmp_path / "elsewhere"


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(InstanceError, match="cannot hold the Dagster instance"):
        ensure_dagster_home(small_settings(tmp_path))
