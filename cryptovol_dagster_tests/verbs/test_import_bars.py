"""Days that an import has changed, shown in Dagster, where Dagster can be told."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from cryptovol_dagster.cli import main
from cryptovol_dagster.core.market.candle_checks import MINUTE_NS
from cryptovol_dagster.defs.assets.candles import HISTORY
from cryptovol_dagster.machine.instance import dagster_home, open_instance
from cryptovol_dagster_tests.candle_server import made_candles
from cryptovol_dagster_tests.synthetic import small_settings
from ingestor.settings import Settings

DAY_NS = pd.Timestamp("2024-03-01", tz="UTC").value


@pytest.fixture
def settings(tmp_path: Path, own_dagster_home: None, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that `cryptovol` reads too."""
    made = small_settings(tmp_path)
    monkeypatch.setenv("CRYPTOVOL__STORAGE__DATA_DIR", str(made.storage.data_dir))
    monkeypatch.setenv("CRYPTOVOL_CONFIG", str(tmp_path / "config.yaml"))
    (tmp_path / "config.yaml").write_text("{}")
    return made


def test_an_import_shows_the_days_it_changed_in_dagster(settings: Settings, tmp_path: Path) -> None:
    candles = made_candles(DAY_NS + 1_430 * MINUTE_NS, 20, level=100.0).assign(product="BTC-USD")
    candles.to_csv(tmp_path / "more.csv", index=False)
    result = CliRunner().invoke(main, ["import-bars", str(tmp_path / "more.csv"), "--json"])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert json.loads(result.stdout)["products"]["BTC-USD"]["days"] == 2
    with open_instance(dagster_home(settings)) as instance:
        assert instance.get_materialized_partitions(HISTORY) == {"2024-03-01", "2024-03-02"}
        event = instance.get_latest_materialization_event(HISTORY)
    assert event is not None
    assert event.asset_materialization is not None
    told = {name: value.value for name, value in event.asset_materialization.metadata.items()}
    assert told == {"dagster/partition_row_count": 10, "candles BTC-USD": 10}


def test_an_import_stands_also_where_dagster_cannot_be_told(settings: Settings, tmp_path: Path) -> None:
    settings.storage.data_dir.mkdir()
    dagster_home(settings).write_text("no folder")
    candles = made_candles(DAY_NS, 20, level=100.0).assign(product="BTC-USD")
    candles.to_csv(tmp_path / "more.csv", index=False)
    result = CliRunner().invoke(main, ["import-bars", str(tmp_path / "more.csv")])
    assert result.exit_code == 0
    assert result.stderr.startswith("not shown in Dagster: ")
    assert "BTC-USD: 20 candles stored" in result.stdout
