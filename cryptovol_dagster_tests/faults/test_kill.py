"""SIGKILL of the archive, and of the broker: every Kafka offset is stored exactly once all the same."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Producer

from cryptovol_dagster_tests.brokers import new_instance
from cryptovol_dagster_tests.faults.conservation import assert_exactly_once, raw_files
from cryptovol_dagster_tests.ingestor.archive.messages import TEN_NS, dead, event, tick, trade
from cryptovol_dagster_tests.places import REPOSITORY
from ingestor.archive.consumer import Archive
from ingestor.envelope import DEAD, EVENTS, TICKS, TRADES
from ingestor.kafka.broker import Broker, connect
from ingestor.settings.sections import KafkaSettings, StorageSettings
from ingestor.times import NS

#: `make soak` kills the whole recorder fifty times.
KILLS = 15


class Traffic(threading.Thread):
    """Produces to all four topics until told to end; the market's clock runs 800 times as fast."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(daemon=True)
        self._broker = broker
        self._end = threading.Event()
        self._producer = Producer(broker.producer_config())

    def run(self) -> None:
        sequence, time_ns = 0, TEN_NS
        while not self._end.is_set():
            for _ in range(40):
                time_ns = TEN_NS + sequence * NS // 2
                self._send(TICKS, f"P{sequence % 5}", tick(time_ns, sequence))
                sequence += 1
            self._send(TRADES, "P0", trade(time_ns, sequence))
            self._send(EVENTS, "c1", event("resumed", time_ns))
            if sequence % 200 == 0:
                self._send(DEAD, "c1", dead(time_ns))
                self._send(TICKS, "P1", b"\xff not a tick")
            self._producer.poll(0)
            self._end.wait(0.025)

    def end(self) -> None:
        self._end.set()
        self.join()
        assert self._producer.flush(30) == 0

    def _send(self, topic: str, key: str, value: bytes) -> None:
        self._producer.produce(self._broker.topic(topic), value, key=key)


@pytest.mark.kafka
@pytest.mark.slow
def test_archive_killed_at_random_moments(real_broker: Broker, tmp_path: Path) -> None:
    generator = random.Random(20260404)
    traffic = Traffic(real_broker)
    traffic.start()
    command = [
        sys.executable,
        "-m",
        "cryptovol_dagster_tests.faults.run_archive",
        real_broker.bootstrap_servers,
        real_broker.topic(""),
        str(tmp_path),
    ]
    raw_dir = StorageSettings(data_dir=tmp_path).raw_dir
    kills_with_progress = 0
    for life in range(KILLS):
        files_before = len(raw_files(raw_dir))
        raw_format = ("parquet", "ndjson")[life % 2]  # each goes on where the other was killed
        process = subprocess.Popen([*command, raw_format], cwd=REPOSITORY, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # everything is imported
        # A first file takes about 0.4 s, so kills fall before, into and after the first few.
        time.sleep(generator.uniform(0.0, 1.0))
        assert process.poll() is None, "the archive ended by itself"
        process.kill()
        process.wait()
        process.stdout.close()
        kills_with_progress += len(raw_files(raw_dir)) > files_before
    traffic.end()

    storage = StorageSettings(data_dir=tmp_path)
    last = Archive(real_broker, storage, closed_after_s=120)
    last.start()
    last.stop(drain=True)
    assert assert_exactly_once(real_broker, raw_dir) > 10_000
    assert kills_with_progress > KILLS // 4
    assert {path.suffix for path in raw_files(raw_dir)} == {".parquet", ".ndjson"}


@pytest.mark.kafka
@pytest.mark.slow
def test_broker_killed_and_restarted(tmp_path: Path) -> None:
    instance = new_instance(tmp_path / "kafka")
    instance.start()
    settings = KafkaSettings(
        bootstrap_servers=instance.bootstrap_servers, topic_prefix=f"{uuid.uuid4().hex[:8]}."
    )
    storage = StorageSettings(data_dir=tmp_path, flush_s=0.2)
    try:
        with connect(settings) as broker:
            broker.ensure_topics()
            traffic = Traffic(broker)
            traffic.start()
            archive = Archive(broker, storage, closed_after_s=120)
            archive.start()
            time.sleep(2)
            instance.kill()
            time.sleep(1)
            instance.start()
            time.sleep(2)
            traffic.end()
            archive.stop(drain=True)
            assert_exactly_once(broker, storage.raw_dir)
    finally:
        instance.run("stop")
