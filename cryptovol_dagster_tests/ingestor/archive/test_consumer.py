"""The whole archive on both brokers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from cryptovol_dagster_tests.ingestor.archive.messages import MINUTE_NS, TEN_NS, dead, event, tick, trade
from ingestor.archive.consumer import Archive
from ingestor.archive.errors import ArchiveError
from ingestor.archive.reader import RawReader
from ingestor.archive.schema import to_batch
from ingestor.archive.writer import OpenFile
from ingestor.envelope import DEAD, EVENTS, TICKS, TOPICS, TRADES
from ingestor.kafka.broker import Broker, connect
from ingestor.settings.sections import KafkaSettings, RawFormat, StorageSettings
from ingestor.times import NS

FOREVER = (0, 2**62)
StartArchive = Callable[..., Archive]
both_formats = pytest.mark.parametrize("raw_format", get_args(RawFormat))


@pytest.fixture
def raw_format() -> RawFormat:
    return "parquet"


@pytest.fixture
def storage(tmp_path: Path, raw_format: RawFormat) -> StorageSettings:
    return StorageSettings(data_dir=tmp_path, raw_format=raw_format)


@pytest.fixture
def start(storage: StorageSettings) -> Iterator[StartArchive]:
    """Starts archives, and ends those a failing test left running."""
    started: list[Archive] = []

    def start_archive(broker: Broker, **options: float) -> Archive:
        archive = Archive(broker, storage.model_copy(update=options), closed_after_s=120)
        archive.start()
        started.append(archive)
        return archive

    yield start_archive
    for archive in started:
        archive._stop.set()
        assert archive._thread is not None
        archive._thread.join(20)


def send(broker: Broker, topic: str, values: list[bytes], partition: int = 0) -> None:
    producer = Producer(broker.producer_config())
    for value in values:
        producer.produce(broker.topic(topic), value, partition=partition)
    assert producer.flush(10) == 0


def stored(storage: StorageSettings, topic: str) -> Counter[tuple[int, int]]:
    table = RawReader(storage.raw_dir).read(topic, *FOREVER, columns=["kafka_partition", "kafka_offset"])
    return Counter(zip(*(column.to_pylist() for column in table.columns), strict=True))


def expected(broker: Broker, topic: str) -> Counter[tuple[int, int]]:
    return Counter(
        (partition, offset) for partition, end in broker.end_offsets(topic).items() for offset in range(end)
    )


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


@both_formats
def test_everything_of_all_topics_is_stored_once(
    any_broker: Broker, storage: StorageSettings, start: StartArchive
) -> None:
    for partition in range(3):
        send(any_broker, TICKS, [tick(TEN_NS + i * MINUTE_NS, i) for i in range(200)], partition)
    send(any_broker, TRADES, [trade(TEN_NS + i * NS, i) for i in range(50)])
    send(any_broker, EVENTS, [event("connected", TEN_NS), b"not an event"])
    send(any_broker, DEAD, [dead(TEN_NS)])
    archive = start(any_broker)
    archive.stop()
    for topic in TOPICS:
        assert stored(storage, topic) == expected(any_broker, topic)
    assert archive.stored_offsets()[TICKS, 1] == 200
    assert archive.error is None


@both_formats
def test_a_second_run_goes_on_where_the_first_ended(
    any_broker: Broker, storage: StorageSettings, start: StartArchive
) -> None:
    for run in range(3):
        send(any_broker, TICKS, [tick(TEN_NS + run * MINUTE_NS)] * 10)
        start(any_broker).stop()
        assert stored(storage, TICKS) == expected(any_broker, TICKS)
    assert len(RawReader(storage.raw_dir).files(TICKS, *FOREVER)) == 3


def test_an_idle_topic_is_stored_by_the_clock(any_broker: Broker, start: StartArchive) -> None:
    archive = start(any_broker, flush_s=0.2)
    send(any_broker, TICKS, [tick()])
    wait_for(lambda: archive.stored_offsets().get((TICKS, 0)) == 1)


def test_a_busy_topic_is_stored_by_rows(any_broker: Broker, start: StartArchive) -> None:
    archive = start(any_broker, flush_rows=100)
    send(any_broker, TICKS, [tick()] * 250)
    wait_for(lambda: archive.stored_offsets().get((TICKS, 0), 0) >= 100)


def test_draining_does_not_wait_for_the_clock(any_broker: Broker, start: StartArchive) -> None:
    archive = start(any_broker)
    send(any_broker, TICKS, [tick()] * 5)
    archive.drain_to({(TICKS, 0): 5, (TRADES, 0): 0}, timeout_s=20)
    assert archive.stored_offsets()[TICKS, 0] == 5
    with pytest.raises(
        ArchiveError, match=r"not stored in full within 0\.3 s, .*ticks\.raw partition 0 before"
    ):
        archive.drain_to({(TICKS, 0): 6}, timeout_s=0.3)


def test_on_the_embedded_broker_a_megabyte_is_stored_at_once(
    embedded_broker: Broker, start: StartArchive
) -> None:
    """The feed stops at 2 MiB that are not stored, so waiting for the clock would stop it for a minute."""
    archive = start(embedded_broker)
    entry = b'"' + b"x" * 2000 + b'"'
    send(embedded_broker, TICKS, [tick(entry=entry)] * 700)
    wait_for(lambda: archive.stored_offsets().get((TICKS, 0), 0) > 0)


@both_formats
def test_hours_close_with_the_stored_checkpoint(
    any_broker: Broker, storage: StorageSettings, start: StartArchive
) -> None:
    send(any_broker, TICKS, [tick(TEN_NS)])
    after_ns = TEN_NS + 62 * MINUTE_NS
    send(any_broker, EVENTS, [event("checkpoint", TEN_NS, "c1", after_ns, {TICKS: {"0": 0}})])
    start(any_broker).stop()
    assert [hour.hour for hour in RawReader(storage.raw_dir).closed_hours()] == ["2026-04-04-10:00"]


def test_what_lands_in_a_closed_hour_closes_it_again_at_the_latest_at_the_end(
    embedded_broker: Broker, storage: StorageSettings
) -> None:
    told: list[tuple[str, int, int]] = []
    archive = Archive(
        embedded_broker,
        storage.model_copy(update={"flush_s": 0.2}),
        closed_after_s=120,
        on_hour_closed=lambda hour: told.append((hour.hour, hour.revision, hour.late_rows)),
    )
    send(embedded_broker, TICKS, [tick(TEN_NS)])
    after_ns = TEN_NS + 62 * MINUTE_NS
    send(embedded_broker, EVENTS, [event("checkpoint", TEN_NS, "c1", after_ns, {TICKS: {"0": 0}})])
    archive.start()
    wait_for(lambda: len(told) == 1)
    send(embedded_broker, TICKS, [tick(TEN_NS + 5), tick(TEN_NS + 6)])
    archive.stop()
    assert told == [("2026-04-04-10:00", 0, 0), ("2026-04-04-10:00", 1, 2)]
    assert [hour.rows[TICKS] for hour in RawReader(storage.raw_dir).closings("2026-04-04-10:00")] == [1, 3]


def test_two_archives_share_the_work_and_store_nothing_twice(
    any_broker: Broker, storage: StorageSettings, start: StartArchive
) -> None:
    first = start(any_broker, flush_s=0.2)
    send(any_broker, TICKS, [tick()] * 500)
    second = start(any_broker, flush_s=0.2)
    for partition in range(3):
        send(any_broker, TICKS, [tick(TEN_NS + NS)] * 500, partition)
    first.stop()
    send(any_broker, TICKS, [tick(TEN_NS + 2 * NS)] * 500)
    second.stop()
    assert stored(storage, TICKS) == expected(any_broker, TICKS)


def test_a_new_embedded_broker_is_a_new_log(storage: StorageSettings, start: StartArchive) -> None:
    for _ in range(2):
        with connect(KafkaSettings()) as broker:
            broker.ensure_topics()
            send(broker, TICKS, [tick()] * 5)
            start(broker).stop()
    assert stored(storage, TICKS) == Counter({(0, offset): 2 for offset in range(5)})


def test_an_unwritable_folder_stops_it_with_one_line(
    embedded_broker: Broker, storage: StorageSettings, start: StartArchive
) -> None:
    storage.raw_dir.mkdir(parents=True)
    (storage.raw_dir / TICKS).write_text("in the way")
    archive = start(embedded_broker, flush_s=0.1)
    send(embedded_broker, TICKS, [tick()])
    wait_for(lambda: archive.error is not None)
    with pytest.raises(ArchiveError, match=r"raw storage cannot (read|write) .*ticks\.raw.*: [A-Z]"):
        archive.stop()


@pytest.mark.kafka
def test_what_the_broker_deleted_is_a_recorded_gap(
    real_broker: Broker, storage: StorageSettings, start: StartArchive
) -> None:
    send(real_broker, TICKS, [tick()] * 10)
    start(real_broker).stop()
    send(real_broker, TICKS, [tick()] * 20)
    admin = AdminClient({"bootstrap.servers": real_broker.bootstrap_servers})
    lost = TopicPartition(real_broker.topic(TICKS), 0, 25)
    admin.delete_records([lost])[lost].result(10)
    start(real_broker).stop()
    (gap,) = RawReader(storage.raw_dir).offset_gaps(TICKS)
    assert (gap.partition, gap.first_offset, gap.last_offset) == (0, 10, 24)
    assert stored(storage, TICKS) == Counter((0, offset) for offset in [*range(10), *range(25, 30)])


@pytest.mark.kafka
def test_records_that_no_reader_can_see_are_a_recorded_gap(
    real_broker: Broker, storage: StorageSettings, start: StartArchive
) -> None:
    """A transaction's marker takes an offset: somebody else's producer must not stop the archive."""
    producer = Producer({"bootstrap.servers": real_broker.bootstrap_servers, "transactional.id": "stranger"})
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(real_broker.topic(TICKS), tick(), partition=0)
    producer.commit_transaction(20)
    send(real_broker, TICKS, [tick()] * 3)
    archive = start(real_broker)
    archive.stop()
    (gap,) = RawReader(storage.raw_dir).offset_gaps(TICKS)
    assert (gap.first_offset, gap.last_offset) == (1, 1)
    assert stored(storage, TICKS) == Counter((0, offset) for offset in (0, 2, 3, 4))


@pytest.mark.kafka
def test_a_log_shorter_than_what_is_stored_stops_it(
    real_broker: Broker, storage: StorageSettings, start: StartArchive
) -> None:
    send(real_broker, TICKS, [tick()] * 10)
    start(real_broker).stop()
    (file,) = RawReader(storage.raw_dir).files(TICKS, *FOREVER)
    further = OpenFile(storage.raw_dir, TICKS, file.footer.log_id, 0, 50)
    further.append(to_batch(TICKS, 0, 50, [tick()], lambda _: 0, None), 0)
    further.publish()
    archive = start(real_broker)
    wait_for(lambda: archive.error is not None)
    with pytest.raises(ArchiveError, match=r"up to offset 50, but the broker's log .* ends at 9"):
        archive.stop()
