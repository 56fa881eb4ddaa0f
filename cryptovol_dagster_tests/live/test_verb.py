"""`cryptovol featurize` says what it needs, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from cryptovol_dagster.cli import main


@pytest.fixture(autouse=True)
def _no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CRYPTOVOL_CONFIG", raising=False)


def test_without_a_broker_of_its_own_it_asks_for_an_address() -> None:
    result = CliRunner().invoke(main, ["featurize"])
    assert result.exit_code == 2
    assert "pass it with --bootstrap HOST:PORT" in result.output


def test_help_shows_how_it_is_used() -> None:
    result = CliRunner().invoke(main, ["featurize", "--help"])
    assert result.exit_code == 0
    assert "cryptovol featurize --until-idle 5 --json" in result.output


def test_nobody_at_the_address_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYPTOVOL__KAFKA__CONNECT_TIMEOUT_S", "0.5")
    result = CliRunner().invoke(main, ["featurize", "--bootstrap", "127.0.0.1:9"])
    assert result.exit_code == 1
    assert "Kafka broker at 127.0.0.1:9 cannot be reached within 0.5 s" in result.output
