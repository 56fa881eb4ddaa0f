"""`cryptovol featurize` from the socket to the table: the rows of `cryptovol replay`, whatever happens."""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.live.featurizer import Featurizer
from cryptovol_dagster.live.progress import LiveSummary
from cryptovol_dagster_tests.e2e.processes import CRYPTOVOL, cryptovol, environment, simulated
from cryptovol_dagster_tests.e2e.recorded import EVER_NS
from cryptovol_dagster_tests.live.parity import (
    SPEC,
    WARM_BARS,
    assert_parity,
    closed_by_partition,
    from_storage,
    last_line,
    published,
    replayed,
    written,
)
from ingestor.archive.reader import RawReader
from ingestor.envelope import FEATURES_TOPIC, TICKS
from ingestor.kafka.broker import Broker, connect
from ingestor.settings import Settings
from ingestor.settings.sections import EMBEDDED, KafkaSettings, LiveSettings, StorageSettings

RECORDING = "btc_eth_2026-04-04_2h.ndjson.gz"
N_TICKS = 30_123
#: An hour and a quarter: the longest kernel is warm after 2,400 bars.
MARKET = ("--hours", "1.25", "--seed", "20260404", "--products", "BTC-USD,ETH-USD,SOL-USD")
FAULTS = "gap@600s:3; disconnect@1500s:1006; gap@2000s:40; gap@3000s:1"
KILLS = 3


def settings_for(folder: Path, kafka: KafkaSettings) -> Settings:
    return Settings(
        kafka=kafka,
        storage=StorageSettings(
            data_dir=folder / "data",
            reports_dir=folder / "reports",
            artifacts_dir=folder / "artifacts",
            flush_s=0.5,
        ),
        live=LiveSettings(flush_s=1.0, commit_s=0.5),
    )


@contextmanager
def recording(env: dict[str, str], url: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`cryptovol ingest` while the block lasts, and the address of its broker."""
    process = subprocess.Popen(
        [*CRYPTOVOL, "ingest", "--url", url, "--json", *options], env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["bootstrap_servers"]
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def everything_in(broker: Broker) -> list[bytes]:
    """The values of ticks.features, partition by partition."""
    name, values = broker.topic(FEATURES_TOPIC), []
    consumer = Consumer(broker.consumer_config("test-features"))
    for partition, end in broker.end_offsets(FEATURES_TOPIC).items():
        if not end:
            continue
        consumer.assign([TopicPartition(name, partition, 0)])
        last = -1
        while last < end - 1:
            for message in consumer.consume(2_000, 0.2):
                assert message.error() is None
                values.append(message.value())
                last = message.offset()
    consumer.close()
    return values


@pytest.mark.slow
def test_a_real_recording_over_the_embedded_broker(recordings: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, KafkaSettings(bootstrap_servers=EMBEDDED))
    env = environment(settings, tmp_path)
    played = ("--recording", recordings / RECORDING, "--speed", "900", "--once")
    with simulated(*played, env=env) as market, recording(env, market.url) as (_, address):
        done = cryptovol("featurize", "--bootstrap", address, "--until-idle", "3", "--json", env=env)
        assert done.returncode == 0, done.stderr
        summary = last_line(done.stdout)
        # A second run finds everything published, and publishes nothing again.
        again = cryptovol("featurize", "--bootstrap", address, "--until-idle", "1", "--json", env=env)
        assert again.returncode == 0, again.stderr
    batch = replayed(settings.storage.raw_dir, tmp_path / "replayed.parquet")
    assert RawReader(settings.storage.raw_dir).count(TICKS, 0, EVER_NS) == N_TICKS
    assert assert_parity(written(settings.storage.features_path), batch) > 9_000
    assert (summary["ended"], summary["products"]) == ("idle", ["BTC-USD", "ETH-USD"])
    # Not `late`: what raw storage gains while it is read comes from Kafka again, some of it too late.
    assert summary["unreadable"] == 0
    assert summary["rows"] > 14_000
    second = last_line(again.stdout)
    assert second["revisions"] == 0
    assert second["known"] > 0
    assert second["rows"] < 100  # seconds that went by in silence


def killed_while_publishing(env: dict[str, str], seconds: float) -> bool:
    """Start it, wait for rows that are new, kill it a little later; False where none came."""
    command = [*CRYPTOVOL, "featurize", "--until-idle", "3"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    is_publishing = any(line.startswith("first row of") for line in process.stdout)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    return is_publishing


@pytest.mark.kafka
@pytest.mark.slow
def test_killed_again_and_again(real_broker: Broker, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, real_broker.settings)
    env = environment(settings, tmp_path)
    moments = random.Random(20260404)
    with (
        simulated(*MARKET, "--speed", "120", "--once", "--faults", FAULTS, env=env) as market,
        recording(env, market.url, "--until-closed") as (recorder, _),
    ):
        kills = sum(killed_while_publishing(env, moments.uniform(0, 1.5)) for _ in range(KILLS))
        recorder.wait(timeout=90)
    # How many of the lives published anything depends on the machine; the first one always does.
    assert kills > 0
    done = cryptovol("featurize", "--until-idle", "2", "--json", env=env)
    assert done.returncode == 0, done.stderr
    batch = from_storage(settings.storage.raw_dir)
    breaks = batch["reason"].groupby(level="product").agg(lambda reasons: (reasons == Reason.BREAK).sum())
    assert (breaks >= 4).all()
    assert assert_parity(written(settings.storage.features_path), batch) > WARM_BARS
    assert assert_parity(published(everything_in(real_broker)), batch) > WARM_BARS


class Instance(threading.Thread):
    """A featurizer in a thread of its own."""

    def __init__(self, settings: Settings, until_idle_s: float | None = None) -> None:
        super().__init__(daemon=True)
        self.settings, self.until_idle_s = settings, until_idle_s
        self.stop, self.rows = threading.Event(), 0
        self.summary: LiveSummary | None = None

    def run(self) -> None:
        storage = self.settings.storage
        with connect(self.settings.kafka) as broker:
            featurizer = Featurizer(
                broker,
                SPEC,
                self.settings.live,
                raw_dir=storage.raw_dir,
                out=storage.features_path,
                on_rows=self._count,
            )
            self.summary = featurizer.run(self.stop, until_idle_s=self.until_idle_s)

    def _count(self, rows: object) -> None:
        self.rows += len(rows)  # type: ignore[arg-type]

    def wait_for_rows(self, n_rows: int) -> None:
        deadline = time.monotonic() + 60
        while self.rows < n_rows:
            assert self.is_alive(), "it ended by itself"
            assert time.monotonic() < deadline, f"{self.rows} rows in 60 s"
            time.sleep(0.05)


@pytest.mark.kafka
@pytest.mark.slow
def test_a_second_instance_joins_and_leaves(real_broker: Broker, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, real_broker.settings)
    env = environment(settings, tmp_path)
    with (
        simulated(*MARKET, "--speed", "180", "--once", env=env) as market,
        recording(env, market.url, "--until-closed") as (recorder, _),
    ):
        first, second = Instance(settings, until_idle_s=6), Instance(settings)
        first.start()
        first.wait_for_rows(100)
        second.start()
        second.wait_for_rows(100)
        second.stop.set()
        second.join(timeout=60)
        recorder.wait(timeout=90)
    first.join(timeout=90)
    assert first.summary is not None
    assert second.summary is not None
    assert (first.summary.ended, second.summary.ended) == ("idle", "signal")
    batch = from_storage(settings.storage.raw_dir)
    assert batch["ln_trade_rate_60"].notna().any()
    assert assert_parity(written(settings.storage.features_path), batch) > WARM_BARS
    values = everything_in(real_broker)
    rows = published(values)
    assert assert_parity(rows, batch) > WARM_BARS
    # Every partition says how far it has closed, the one without a product too.
    closed = closed_by_partition(values, real_broker.settings.partitions)
    assert closed.keys() == set(range(real_broker.settings.partitions))
    newest = rows.index.get_level_values("bar_start").max()
    assert min(closed.values()) >= newest.value
