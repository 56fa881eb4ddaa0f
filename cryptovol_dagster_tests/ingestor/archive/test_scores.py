"""The archive of the scores on both brokers, alone and beside the archive of the feed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster_tests.faults.conservation import assert_exactly_once, raw_files
from cryptovol_dagster_tests.ingestor.archive.messages import MINUTE_NS, TEN_NS, closing, event, score, tick
from cryptovol_dagster_tests.ingestor.archive.test_consumer import FOREVER, expected, send, stored, wait_for
from cryptovol_dagster_tests.places import REPOSITORY
from ingestor.archive.collection import ARCHIVED_TOPICS
from ingestor.archive.consumer import Archive
from ingestor.archive.layout import CLOSED_SCORES, ClosedHour
from ingestor.archive.member_name import archive_runs
from ingestor.archive.reader import RawReader
from ingestor.archive.schema import UNREADABLE
from ingestor.archive.scores import scores_archive
from ingestor.archive.storage_lock import StorageLock
from ingestor.audit.hours import audit
from ingestor.envelope import EVENTS, SCORES_TOPIC, TICKS
from ingestor.kafka import logs
from ingestor.kafka.broker import Broker
from ingestor.settings.sections import StorageSettings
from ingestor.times import HOUR_NS, NS

HOUR = "2026-04-04-10:00"
ENOUGH_NS = TEN_NS + HOUR_NS + 120 * NS
StartArchive = Callable[[Archive], Archive]


@pytest.fixture
def storage(tmp_path: Path) -> StorageSettings:
    return StorageSettings(data_dir=tmp_path, flush_s=0.2)


@pytest.fixture
def start() -> Iterator[StartArchive]:
    """Starts archives, and ends those a failing test left running."""
    started: list[Archive] = []

    def start_archive(archive: Archive) -> Archive:
        archive.start()
        started.append(archive)
        return archive

    yield start_archive
    for archive in started:
        archive._stop.set()
        assert archive._thread is not None
        archive._thread.join(20)


def send_scores(broker: Broker, first_ns: int, end_ns: int) -> None:
    """The scorer's part: a score a minute in each partition, then the record that closes it."""
    producer = Producer(broker.producer_config())
    for partition in range(broker.partitions(SCORES_TOPIC)):
        values = [score(time_ns, product=f"P{partition}") for time_ns in range(first_ns, end_ns, MINUTE_NS)]
        for value in (*values, closing(partition, end_ns)):
            producer.produce(broker.topic(SCORES_TOPIC), value, partition=partition)
    assert producer.flush(10) == 0


def test_an_hour_of_scores_is_stored_closed_and_closed_again(
    any_broker: Broker, storage: StorageSettings, start: StartArchive
) -> None:
    closed: list[ClosedHour] = []
    archive = start(scores_archive(any_broker, storage, closed_after_s=120, on_hour_closed=closed.append))
    partitions = any_broker.partitions(SCORES_TOPIC)
    send_scores(any_broker, TEN_NS, ENOUGH_NS - NS)
    send(any_broker, SCORES_TOPIC, [b"not a score"])
    archive.drain_to({(SCORES_TOPIC, 0): 64}, timeout_s=20)
    send_scores(any_broker, ENOUGH_NS, ENOUGH_NS + 1)
    wait_for(lambda: len(closed) == 1)
    send(any_broker, SCORES_TOPIC, [score(TEN_NS, 1), score(TEN_NS + MINUTE_NS, 1)])
    archive.stop()

    assert [(hour.hour, hour.revision, hour.late_rows) for hour in closed] == [(HOUR, 0, 0), (HOUR, 1, 2)]
    assert [hour.rows for hour in closed] == [
        {SCORES_TOPIC: 60 * partitions},
        {SCORES_TOPIC: 60 * partitions + 2},
    ]
    raw = RawStore(storage.raw_dir)
    assert raw.closed_score_hours() == closed[1:]
    assert raw.closed_hours() == []
    assert stored(storage, SCORES_TOPIC) == expected(any_broker, SCORES_TOPIC)
    assert raw.scores(TEN_NS, TEN_NS + HOUR_NS).num_rows == 60 * partitions + 2
    (unreadable,) = [
        row for row in raw.reader.read(SCORES_TOPIC, *FOREVER).to_pylist() if row["schema_version"] < 0
    ]
    assert (unreadable["schema_version"], unreadable["payload"]) == (UNREADABLE, "bm90IGEgc2NvcmU=")
    result = audit(raw.reader, with_scores=True)
    assert (result.findings, [one.state for one in result.seals]) == ((), ["unchanged"])


@pytest.mark.kafka
@pytest.mark.slow
def test_a_killed_archive_of_scores_costs_no_offset_and_no_hour_of_the_feed(
    real_broker: Broker, storage: StorageSettings, start: StartArchive
) -> None:
    """The archive of the feed runs on; a standby stores and closes what the killed one would have."""
    raw_dir = storage.raw_dir
    with StorageLock(raw_dir):
        feed = start(Archive(real_broker, storage, closed_after_s=120))
        killed = _scores_process(real_broker, storage.data_dir)
        try:
            send_scores(real_broker, TEN_NS, TEN_NS + 20 * MINUTE_NS)
            wait_for(lambda: len(raw_files(raw_dir, SCORES_TOPIC)) >= 3)
            standby = start(scores_archive(real_broker, storage, closed_after_s=120))
            wait_for(lambda: bool(standby.stored_offsets()))  # it has partitions
            send_scores(real_broker, TEN_NS + 20 * MINUTE_NS, ENOUGH_NS - NS)
        finally:
            killed.kill()
            killed.wait()
        send(real_broker, TICKS, [tick(TEN_NS)])
        after_ns = TEN_NS + 62 * MINUTE_NS
        send(real_broker, EVENTS, [event("checkpoint", TEN_NS, "c1", after_ns, {TICKS: {"0": 0}})])
        wait_for(lambda: RawReader(raw_dir).closed_hour(HOUR) is not None)
        assert RawReader(raw_dir).closed_hour(HOUR, closed=CLOSED_SCORES) is None
        feed.stop()
    assert not archive_runs(raw_dir)  # that of the scores does not count
    before = RawReader(raw_dir).closings(HOUR)
    send_scores(real_broker, ENOUGH_NS, ENOUGH_NS + 1)
    standby.stop()

    assert assert_exactly_once(real_broker, raw_dir, ARCHIVED_TOPICS) == 2 + 3 * (63 + 3)
    (hour,) = RawReader(raw_dir).closed_hours(closed=CLOSED_SCORES)
    assert (hour.hour, hour.rows) == (HOUR, {SCORES_TOPIC: 3 * 61})
    assert RawReader(raw_dir).closings(HOUR) == before


def _scores_process(broker: Broker, data_dir: Path) -> subprocess.Popen[bytes]:
    arguments = (broker.bootstrap_servers, broker.topic(""), str(data_dir), "parquet", "scores")
    command = (sys.executable, "-m", "cryptovol_dagster_tests.faults.run_archive", *arguments)
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)


@pytest.mark.kafka
@pytest.mark.slow
def test_a_recreated_topic_of_scores_is_read_from_its_start_and_the_feed_hears_nothing(
    real_broker: Broker,
    storage: StorageSettings,
    start: StartArchive,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "_RECREATE_AFTER_S", 0.0)
    feed = start(Archive(real_broker, storage, closed_after_s=120))
    archive = start(scores_archive(real_broker, storage, closed_after_s=120))
    send_scores(real_broker, TEN_NS, TEN_NS + 5 * MINUTE_NS)
    ends = {(SCORES_TOPIC, number): 6 for number in range(3)}
    archive.drain_to(ends, timeout_s=20)
    old_log, name = real_broker.log_id(SCORES_TOPIC), real_broker.topic(SCORES_TOPIC)
    admin = AdminClient({"bootstrap.servers": real_broker.bootstrap_servers})
    admin.delete_topics([name])[name].result(10)
    wait_for(lambda: "was recreated: its log was" in caplog.text, timeout_s=30)
    real_broker.renew_clients()
    assert (new_log := real_broker.log_id(SCORES_TOPIC)) != old_log
    send_scores(real_broker, TEN_NS, ENOUGH_NS)
    send(real_broker, TICKS, [tick(TEN_NS)])
    archive.stop()
    feed.stop()

    rows: Counter[str] = Counter()
    for file in RawReader(storage.raw_dir).files(SCORES_TOPIC, *FOREVER):
        rows[file.footer.log_id] += file.footer.rows
    assert rows == {old_log: 3 * 6, new_log: 3 * 63}
    assert [hour.hour for hour in RawReader(storage.raw_dir).closed_hours(closed=CLOSED_SCORES)] == [HOUR]
    assert stored(storage, TICKS) == expected(real_broker, TICKS)
    assert caplog.text.count("joins again to read its new log") == 1
