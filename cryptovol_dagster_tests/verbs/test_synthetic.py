"""A synthetic market's folder: its own configuration, and nothing of the real market's touched."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from cryptovol_dagster.chains import spec_of
from cryptovol_dagster.cli import main
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import HOUR_NS, hour_keys
from cryptovol_dagster.lake.plans import trains_at
from cryptovol_dagster.machine.instance import (
    InstanceError,
    dagster_home,
    ensure_dagster_home,
    hold_instance,
    running_instance,
)
from cryptovol_dagster.machine.services import Machine
from cryptovol_dagster.verbs.synthetic import (
    NestedMarketError,
    NoMarketError,
    create_market,
    creating_market,
    open_market,
    remove_markets,
)
from ingestor.settings import Settings, load_settings

START = datetime(2025, 12, 1, 18, tzinfo=UTC)
START_NS = int(START.timestamp()) * NS
FOLDER = Path("data/demo")
CONFIG = """
coinbase: {products: [SOL-USD], url: "wss://example.org"}
kafka: {bootstrap_servers: "broker:9092", security: {sasl.password: secret}}
storage: {data_dir: mine, raw_format: ndjson}
timescales: {seconds: {quantile: 0.95}}
monitoring: {alert_webhook_url: "https://example.org/hook", alert_tries: 5}
mlflow: {tracking_uri: "http://team:5000"}
dagster: {report_closed_hours: true, partitions_start: "2020-01-01-00:00"}
"""


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's own configuration and environment; both are as before when the test ends."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    before = dict(os.environ)
    monkeypatch.setenv("CRYPTOVOL_CONFIG", str(config))
    monkeypatch.setenv("CRYPTOVOL__MODELS__SEED", "11")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    yield
    os.environ.clear()
    os.environ.update(before)


def test_it_takes_over_how_to_compute_and_shares_nothing(tmp_path: Path) -> None:
    settings = create_market(FOLDER, START, by="cryptovol demo")
    folder = tmp_path / "data" / "demo"
    assert settings == load_settings(folder / "config.yaml", environ={}).settings
    assert (settings.coinbase.products, settings.timescales.seconds.quantile) == (("SOL-USD",), 0.95)
    assert (settings.models.seed, settings.monitoring.alert_tries) == (11, 5)
    assert settings.storage.raw_format == "ndjson"
    assert settings.storage.data_dir == folder
    assert settings.storage.reports_dir == folder / "reports"
    assert settings.storage.artifacts_dir == folder / "models"
    assert settings.dagster.partitions_start == "2025-12-01-18:00"
    assert settings.dagster.minutes_start == date(2025, 12, 1)
    assert settings.coinbase.url == Settings().coinbase.url
    assert settings.kafka == Settings().kafka
    assert settings.monitoring.alert_webhook_url is None
    assert settings.mlflow.tracking_uri is None
    assert settings.history.first_import_days == 0
    assert not settings.dagster.report_closed_hours
    assert "DAGSTER_HOME" not in os.environ


def test_an_exported_home_is_the_real_markets_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever exports the home of the real market still gets the demo's own by ``--config``."""
    demo = create_market(FOLDER, START, by="cryptovol demo")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    own = demo.storage.data_dir / "dagster_home"
    assert dagster_home(demo) == ensure_dagster_home(demo) == own
    machine = Machine(demo, dagster_home(demo), 3001, 5001)
    assert {one.environment["DAGSTER_HOME"] for one in machine.dagster(essential=True)} == {str(own)}
    real = load_settings(tmp_path / "config.yaml").settings
    with hold_instance(ensure_dagster_home(real), "http://127.0.0.1:3001", "http://127.0.0.1:5001"):
        assert dagster_home(real) == tmp_path / "home"
        assert running_instance(real) is not None
        assert running_instance(demo) is None


@pytest.mark.parametrize("verb", ["up", "ingest"])
def test_the_real_market_is_not_recorded_into_a_synthetic_one(verb: str) -> None:
    folder = create_market(FOLDER, START, by="cryptovol demo").storage.data_dir
    before = sorted(folder.rglob("*"))
    refused = CliRunner().invoke(main, ["--config", str(folder / "config.yaml"), verb])
    assert refused.exit_code == 2
    (line,) = refused.output.splitlines()
    assert line.startswith(
        f"Error: {folder} contains a synthetic market, and `cryptovol {verb}` records the real one:"
    )
    assert sorted(folder.rglob("*")) == before


def test_the_same_market_can_be_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = create_market(FOLDER, START, by="cryptovol demo")
    monkeypatch.setenv("CRYPTOVOL_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("CRYPTOVOL__STORAGE__DATA_DIR", str(tmp_path / "elsewhere"))
    assert open_market(FOLDER, by="cryptovol demo") == made


def test_a_market_holds_no_other_market(tmp_path: Path) -> None:
    create_market(FOLDER, START, by="cryptovol demo")
    says = r"data/demo/config\.yaml is the configuration of a synthetic market, .* omit --config"
    with pytest.raises(NestedMarketError, match=says):
        create_market(Path("data/simulated"), START, by="cryptovol up --simulate")
    with pytest.raises(NestedMarketError, match=says):
        open_market(FOLDER, by="cryptovol demo")
    assert {path.name for path in (tmp_path / "data" / "demo").iterdir()} == {"config.yaml", "market.lock"}


def test_a_folder_that_cannot_be_emptied_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, link = tmp_path / "own", tmp_path / "data" / "demo"
    own.mkdir()
    link.parent.mkdir()
    link.symlink_to(own)
    with pytest.raises(InstanceError, match=r"data/demo cannot be removed or written: .*symbolic link"):
        remove_markets([link], "make clean")
    (own / "raw").mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path / "x"))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(InstanceError, match="raw/x cannot be removed or written: Permission denied"):
        create_market(FOLDER, START, by="cryptovol demo")


def test_without_a_market_the_error_says_how_to_make_one() -> None:
    with pytest.raises(NoMarketError, match="no synthetic market yet: `cryptovol demo` creates one"):
        open_market(FOLDER, by="cryptovol demo")


def test_what_a_running_interface_uses_is_not_removed() -> None:
    settings = create_market(FOLDER, START, by="cryptovol demo")
    kept = settings.storage.data_dir / "raw" / "kept"
    kept.parent.mkdir()
    kept.touch()
    os.environ["CRYPTOVOL_CONFIG"] = str(settings.storage.data_dir.parents[1] / "config.yaml")
    home = ensure_dagster_home(settings)
    says = r"is in use .*127\.0\.0\.1:3000"
    with hold_instance(home, "http://127.0.0.1:3000", "http://127.0.0.1:5000"):
        with pytest.raises(InstanceError, match=says):
            create_market(FOLDER, START, by="cryptovol demo")
        with pytest.raises(InstanceError, match=says):
            remove_markets([settings.storage.data_dir], "make clean")
        (home / "up.lock").write_text("")  # as it is between taking the lock and writing who took it
        with pytest.raises(InstanceError, match=r"is in use \(it has just begun\)"):
            create_market(FOLDER, START, by="cryptovol demo")
    assert kept.exists()
    create_market(FOLDER, START, by="cryptovol demo")
    assert not kept.exists()


def test_two_that_create_a_market_at_a_time_do_not_harm_each_other(tmp_path: Path) -> None:
    user = str(tmp_path / "config.yaml")
    end = START + timedelta(hours=4)
    with creating_market(FOLDER, START, end, by="cryptovol demo") as settings:
        assert settings.dagster.partitions_end == "2025-12-01-22:00"
        seconds = spec_of(settings, "seconds")
        assert not [hour for hour in hour_keys(START_NS, START_NS + 72 * HOUR_NS) if trains_at(seconds, hour)]
        folder = settings.storage.data_dir
        kept = folder / "raw"
        kept.mkdir()
        os.environ["CRYPTOVOL_CONFIG"] = user
        says = rf"data/demo is in use: another command creates a market there \(pid {os.getpid()} on .*\); "
        with (
            pytest.raises(InstanceError, match=says),
            creating_market(FOLDER, START, end, by="cryptovol demo"),
        ):
            pass
        with pytest.raises(InstanceError, match="then run `make clean` again"):
            remove_markets([folder], "make clean")
        refused = CliRunner().invoke(main, ["--config", str(folder / "config.yaml"), "ui"])
        assert refused.exit_code == 1
        assert re.fullmatch(rf"Error: .*{says}.*wait for its end\n".replace("; ", ""), refused.stderr)
        assert not (folder / "dagster_home").exists()
        assert kept.exists()
    os.environ["CRYPTOVOL_CONFIG"] = user
    assert create_market(FOLDER, START, by="cryptovol up --simulate").dagster.partitions_end is None
    assert not kept.exists()
    remove_markets([folder, tmp_path / "data" / "simulated"], "make clean")
    assert not folder.exists()
