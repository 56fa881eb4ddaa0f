"""Latest copies and the Dagster home."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptovol_dagster.lake.latest import ReportError, Reports
from cryptovol_dagster.machine.instance import InstanceError, ensure_dagster_home
from cryptovol_dagster_tests.synthetic import small_settings


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
    with pytest.raises(InstanceError, match="cannot contain the Dagster instance"):
        ensure_dagster_home(small_settings(tmp_path))
