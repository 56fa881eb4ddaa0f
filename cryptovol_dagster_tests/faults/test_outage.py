"""Kafka frozen, killed, wiped, and robbed of a topic, under a running recorder."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from cryptovol_dagster_tests.brokers import KafkaInstance, new_instance
from cryptovol_dagster_tests.e2e.processes import CRYPTOVOL, cryptovol, environment, simulated
from cryptovol_dagster_tests.faults.conservation import EVER_NS, assert_exactly_once, raw_files, stored_runs
from cryptovol_dagster_tests.faults.test_kill_ingest import played_entries
from ingestor.archive.layout import files_in, hour_folders, read_footer
from ingestor.archive.reader import RawReader
from ingestor.envelope import EVENTS, TICKS, TOPICS, TRADES
from ingestor.kafka.broker import Broker, connect
from ingestor.kafka.logs import LogWatch
from ingestor.kafka.publisher import Offsets, Publisher
from ingestor.kafka.spill import Spill
from ingestor.settings import Settings
from ingestor.settings.sections import KafkaSettings, StorageSettings

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

PRODUCTS = ("BTC-USD", "ETH-USD")
#: An hour ends after 10 s at this speed, and is complete 2 s later; the whole takes longer than any test.
MARKET = (
    *("--start", "2025-12-01T00:50:00Z", "--hours", "3", "--seed", "20260404"),
    *("--products", ",".join(PRODUCTS)),
)
SPEED = "60"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaInstance]:
    """A Kafka that may be ill-treated."""
    instance = new_instance(tmp_path_factory.mktemp("kafka"))
    instance.start()
    yield instance
    instance.run("stop")


async def test_a_frozen_kafka_costs_nothing_and_disturbs_no_order(
    kafka: KafkaInstance, tmp_path: Path
) -> None:
    """Messages come faster than the client's queue takes them; marks come with all that was before them."""
    settings = _settings(kafka)
    pid = int((kafka.directory / "broker.pid").read_text())
    reached: list[tuple[int, int]] = []
    with connect(settings) as broker:
        broker.ensure_topics()
        with LogWatch(broker) as logs:
            publisher = Publisher(
                broker,
                unarchived_limit_bytes=1,
                spill=Spill(tmp_path, 10**9, chunk_bytes=50_000),
                logs=logs,
                options={"queue.buffering.max.messages": 500},
            )
            frozen_at, frozen, number = time.monotonic() + 0.5, False, 0
            while time.monotonic() < frozen_at + 4.0:
                if not frozen and time.monotonic() > frozen_at:
                    os.kill(pid, signal.SIGSTOP)
                    frozen = True
                for _ in range(100):
                    publisher.publish(TICKS, b"P%d" % (number % 5), b"%d" % number)
                    number += 1
                publisher.after_acknowledged(_remember(reached, number))
                assert not publisher.blocked
                await asyncio.sleep(0.02)
                publisher.poll()
            os.kill(pid, signal.SIGCONT)
            assert publisher.counters.spilled_messages > number // 2
            assert await publisher.drain(30)
            publisher.close()
        assert [published for published, _ in reached] == list(range(100, number + 1, 100))
        assert all(stored >= published for published, stored in reached)
        records = list(_log(broker, TICKS))
    assert len(records) == number
    for product in range(5):
        key = b"P%d" % product
        assert [int(value) for of, value in records if of == key] == list(range(product, number, 5))


def _remember(reached: list[tuple[int, int]], published: int) -> Callable[[Offsets], None]:
    def remember(offsets: Offsets) -> None:
        reached.append((published, sum(offset + 1 for offset in offsets[TICKS].values())))

    return remember


def test_a_killed_broker_costs_no_frame(kafka: KafkaInstance, tmp_path: Path) -> None:
    script = tmp_path / "market.ndjson"
    assert cryptovol("simulate", *MARKET, "--write", script, env=dict(os.environ)).returncode == 0
    with recording(kafka, tmp_path) as recorder:
        recorder.wait_for_files(TICKS, 4)
        kafka.kill()
        time.sleep(8)
        kafka.start()
        recorder.wait_for_files(TICKS, 4)
        summary = recorder.stopped()
    assert (summary["feed"]["gaps"], summary["feed"]["reconnects"]) == (0, 0)
    assert summary["kafka"]["outages"] == 1
    assert summary["kafka"]["outage_s"] > 8
    assert "Kafka has not acknowledged anything for" in recorder.log.read_text()
    assert "Kafka acknowledges again after" in recorder.log.read_text()
    with connect(recorder.settings) as broker:
        assert_exactly_once(broker, recorder.raw_dir)
    for (topic, product), played in played_entries(script).items():
        (run,) = stored_runs(recorder.raw_dir, topic, product)
        start = played.index(run[0])
        assert run == played[start : start + len(run)]
        assert len(run) > 500


def test_a_topic_made_anew_is_noticed_and_goes_on(kafka: KafkaInstance, tmp_path: Path) -> None:
    """It is only deleted: the recorder makes it anew."""
    with recording(kafka, tmp_path) as recorder:
        recorder.wait_for_files(TICKS, 4)
        name = recorder.settings.topic_prefix + TICKS
        with connect(recorder.settings) as broker:
            old_log = broker.log_id(TICKS)
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
        admin.delete_topics([name])[name].result(10)
        recorder.wait_for("recreated: its log was")
        recorder.wait_for_files(TICKS, 4)
        recorder.wait_for("is complete")
        summary = recorder.stopped()
    assert summary["kafka"]["recreated_logs"] == 1
    assert (summary["feed"]["gaps"], summary["feed"]["reconnects"]) == (0, 0)
    with connect(recorder.settings) as broker:
        new_log = broker.log_id(TICKS)
        assert new_log != old_log
        _assert_every_log_is_accounted_for(broker, recorder.raw_dir)
    assert f"topic {TICKS} was recreated: its log was {old_log} and is {new_log}" in recorder.log.read_text()
    events = RawReader(recorder.raw_dir).read(EVENTS, 0, EVER_NS).to_pylist()
    (told,) = [event for event in events if event["kind"] == "log_recreated"]
    detail = json.loads(told["payload"])
    assert {**detail, "acknowledged": ...} == {
        "topic": TICKS,
        "old_log": old_log,
        "new_log": new_log,
        "acknowledged": ...,
    }
    last = [json.loads(event["payload"]) for event in events if event["kind"] == "checkpoint"][-1]
    assert last["logs"][TICKS] == new_log
    _assert_only_ledgered_losses(recorder.raw_dir, summary["feed"])


def test_a_wiped_broker_ends_the_recorder_and_the_next_one_goes_on(
    kafka: KafkaInstance, tmp_path: Path
) -> None:
    """Another cluster at the address: what clients remember of the old one means something else there."""
    settings = _settings(kafka)
    with recording(kafka, tmp_path, settings) as recorder:
        recorder.wait_for_files(TICKS, 4)
        kafka.run("stop")
        kafka.run("wipe")
        kafka.start()
        reason = recorder.failed()
    told = (
        rf"Error: Kafka at {kafka.bootstrap_servers} is another cluster \(\S+\) than when recording began .*"
    )
    assert re.fullmatch(told, reason)
    with recording(kafka, tmp_path, settings) as successor:
        successor.wait_for_files(TICKS, 4)
        successor.stopped()
    with connect(settings) as broker:
        _assert_every_log_is_accounted_for(broker, recorder.raw_dir)
    assert set(_places(recorder.raw_dir, TICKS).values()) == {1}
    audit = cryptovol("audit", "--json", env=os.environ | {"CRYPTOVOL_CONFIG": str(tmp_path / "config.yaml")})
    assert audit.returncode == 0, audit.stderr


@dataclass(frozen=True)
class Recorder:
    """A running `cryptovol ingest`."""

    process: subprocess.Popen[str]
    settings: KafkaSettings
    raw_dir: Path
    log: Path

    def wait_for_files(self, topic: str, count: int) -> None:
        """Wait until it has stored some more files."""
        enough = len(raw_files(self.raw_dir, topic)) + count
        self._wait(lambda: len(raw_files(self.raw_dir, topic)) >= enough)

    def wait_for(self, text: str) -> None:
        """Wait until its log says so."""
        self._wait(lambda: text in self.log.read_text())

    def stopped(self) -> dict[str, Any]:
        """Interrupt it; give its summary."""
        self.process.send_signal(signal.SIGINT)
        output, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, self.log.read_text()
        return json.loads(output.splitlines()[-1])

    def failed(self) -> str:
        """Wait until it ends by itself with exit code 1; give its last line."""
        self.process.communicate(timeout=90)
        assert self.process.returncode == 1, self.log.read_text()
        return self.log.read_text().splitlines()[-1]

    def _wait(self, is_done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 90
        while not is_done():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)


@contextmanager
def recording(
    kafka: KafkaInstance, folder: Path, kafka_settings: KafkaSettings | None = None
) -> Iterator[Recorder]:
    """Record the market from its begin; nothing outlives the block."""
    storage = StorageSettings(
        data_dir=folder / "data",
        reports_dir=folder / "reports",
        artifacts_dir=folder / "artifacts",
        flush_s=0.5,
        flush_rows=2_000,
    )
    settings = Settings(kafka=kafka_settings or _settings(kafka), storage=storage)
    settings = settings.model_copy(
        update={"ingest": settings.ingest.model_copy(update={"checkpoint_s": 1.0})}
    )
    env, log = environment(settings, folder), folder / "ingest.log"
    with simulated(*MARKET, "--speed", SPEED, env=env) as market, log.open("w") as errors:
        process = subprocess.Popen(
            [*CRYPTOVOL, "ingest", "--url", market.url, "--json"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield Recorder(process, settings.kafka, storage.raw_dir, log)
        finally:
            process.kill()
            process.communicate()


def _settings(kafka: KafkaInstance) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=kafka.bootstrap_servers, topic_prefix=f"test-{uuid.uuid4().hex[:8]}."
    )


def _assert_every_log_is_accounted_for(broker: Broker, raw_dir: Path) -> None:
    """Of the log there is every offset is stored once; of one that is gone, every one is stored or lost."""
    for topic in TOPICS:
        offsets: dict[tuple[str, int], Counter[int]] = {}
        for _, folder in hour_folders(raw_dir / topic):
            for name, path in files_in(folder):
                footer = read_footer(path)
                span = range(footer.first_offset, footer.last_offset + 1)
                offsets.setdefault((name.log_id, name.partition), Counter()).update(span)
        for gap in RawReader(raw_dir).offset_gaps(topic):
            span = range(gap.first_offset, gap.last_offset + 1)
            offsets.setdefault((gap.log_id, gap.partition), Counter()).update(span)
        for (log_id, partition), seen in offsets.items():
            assert seen == Counter(range(len(seen))), (topic, log_id, partition)
        log_id = broker.log_id(topic)
        for partition, end in broker.end_offsets(topic).items():
            assert len(offsets.get((log_id, partition), ())) == end
        gone = {gap.log_id for gap in RawReader(raw_dir).offset_gaps(topic)}
        assert log_id not in gone


def _assert_only_ledgered_losses(raw_dir: Path, feed: dict[str, Any]) -> None:
    for topic, wanted in ((TICKS, feed["ticks"]), (TRADES, feed["trades"])):
        places = _places(raw_dir, topic)
        lost = sum(gap.last_offset - gap.first_offset + 1 for gap in RawReader(raw_dir).offset_gaps(topic))
        assert set(places.values()) == {1}
        assert wanted - lost <= len(places) <= wanted


def _places(raw_dir: Path, topic: str) -> Counter[tuple[Any, ...]]:
    """How often each entry of the exchange is stored."""
    rows = RawReader(raw_dir).read(topic, 0, EVER_NS).to_pylist()
    return Counter(
        (row["connection_id"], row["sequence_num"], row["event_index"], row["entry_index"]) for row in rows
    )


def _log(broker: Broker, topic: str) -> Iterator[tuple[bytes, bytes]]:
    """Every (key, value) of a topic, partition by partition in offset order."""
    for partition, end in broker.end_offsets(topic).items():
        consumer = Consumer(broker.consumer_config(f"test-{uuid.uuid4().hex}"))
        consumer.assign([TopicPartition(broker.topic(topic), partition, 0)])
        left = end
        while left:
            messages = consumer.consume(min(left, 5_000), 10)
            assert messages, f"{left} records do not come"
            for message in messages:
                assert message.error() is None, message.error()
                yield message.key() or b"", message.value() or b""
                left -= 1
        consumer.close()
