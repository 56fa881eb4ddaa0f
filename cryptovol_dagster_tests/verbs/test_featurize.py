"""`cryptovol featurize` says what it needs, in one line."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.cli import main
from cryptovol_dagster.live.errors import LiveError
from cryptovol_dagster.live.featurizer import Featurizer
from ingestor.envelope import TRADES
from ingestor.kafka.broker import connect
from ingestor.settings.sections import EMBEDDED, KafkaSettings, LiveSettings, Settings


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


def test_topics_of_ticks_and_trades_must_be_divided_alike(tmp_path: Path) -> None:
    settings = KafkaSettings(bootstrap_servers=EMBEDDED)
    with connect(settings) as broker:
        of_topic = broker.partitions
        divided = SimpleNamespace(
            ensure_topics=broker.ensure_topics,
            topic=broker.topic,
            partitions=lambda topic: of_topic(topic) + (topic == TRADES),
            bootstrap_servers=broker.bootstrap_servers,
        )
        featurizer = Featurizer(
            divided,  # type: ignore[arg-type] - what it needs up to the refusal
            timescale_spec(Settings().timescales.seconds, "seconds"),
            LiveSettings(),
            raw_dir=tmp_path / "raw",
            out=tmp_path / "out",
        )
        refused = r"ticks.raw has 4 partitions and trades.raw 5: trades are read from the partition of their"
        with pytest.raises(LiveError, match=refused):
            featurizer.run(threading.Event(), duration_s=1)


def test_nobody_at_the_address_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYPTOVOL__KAFKA__CONNECT_TIMEOUT_S", "0.5")
    result = CliRunner().invoke(main, ["featurize", "--bootstrap", "127.0.0.1:9"])
    assert result.exit_code == 1
    assert "Kafka broker at 127.0.0.1:9 cannot be reached within 0.5 s" in result.output
