"""Any interleaving of reading, flushing, failing, restarting and a second writer: every offset exactly once.

The real `Archive` runs over a log in memory whose consumer follows a script; a failure strikes at any system
call of a publication. A second archive, which writes the other format, runs nested inside the first one's
`consume`, so that the first is, for that time, a writer who does not know that it lost its partitions.

Below that, two writers publish files of the same offsets, one system call at a time, in any order.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import pytest
from confluent_kafka import KafkaError, TopicPartition
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cryptovol_dagster_tests.ingestor.archive.messages import TEN_NS, tick
from ingestor.archive.consumer import Archive
from ingestor.archive.errors import CollisionError
from ingestor.archive.layout import DISORDER_NS, files_in, footer_path, hour_folders, is_ndjson, read_footer
from ingestor.archive.positions import stored_offsets
from ingestor.archive.reader import RawReader
from ingestor.archive.schema import to_batch
from ingestor.archive.writer import OpenFile
from ingestor.envelope import TICKS, TOPICS
from ingestor.kafka.logs import LogState
from ingestor.settings.sections import RawFormat, StorageSettings
from ingestor.times import HOUR_NS, NS

PARTITIONS = 2
FORMATS = get_args(RawFormat)
LOG_ID = "abcd1234"


class OneLog:
    """A watch that knows: there is no other log."""

    state = LogState(float("inf"), dict.fromkeys(TOPICS, LOG_ID))


ONE_LOG = OneLog()


class Killed(BaseException):
    """The process ends here."""


class Record:
    def __init__(self, partition: int, offset: int, value: bytes) -> None:
        self._partition, self._offset, self._value = partition, offset, value

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return TICKS

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes:
        return self._value

    def timestamp(self) -> tuple[int, int]:
        return 1, TEN_NS // 1_000_000


class Evicted(Record):
    """What a consumer is given where the log no longer has the offset it wants."""

    def error(self) -> KafkaError:  # pyright: ignore[reportIncompatibleMethodOverride]
        return KafkaError(KafkaError._AUTO_OFFSET_RESET)


class Log:
    """A broker and its log: `PARTITIONS` lists of records."""

    bootstrap_servers = "memory"
    is_embedded = False

    def __init__(self, values: list[list[bytes]]) -> None:
        self.first_offset = 0
        self.records = [
            [Record(partition, offset, value) for offset, value in enumerate(column)]
            for partition, column in enumerate(values)
        ]

    def topic(self, name: str) -> str:
        return name

    def ensure_topics(self) -> None:
        pass

    def partitions(self, topic: str) -> int:
        return PARTITIONS

    def log_ids(self, topics: Sequence[str], **_: object) -> dict[str, str]:
        return dict.fromkeys(topics, LOG_ID)

    def offsets(self, topic: str, partition: int) -> tuple[int, int]:
        return self.first_offset, len(self.records[partition])

    def consumer_config(self, group: str) -> dict[str, Any]:
        return {}


class Reader:
    """A consumer that does what its script says, then nothing until the archive is stopped."""

    def __init__(
        self, log: Log, script: list[Any], stop: threading.Event, run_other: Callable[[], None]
    ) -> None:
        self.log, self.script, self.stop, self.run_other = log, list(script), stop, run_other
        self.positions: dict[int, int] = {}

    def subscribe(self, topics: list[str], on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self.on_assign, self.on_revoke = on_assign, on_revoke
        self.rebalance()

    def rebalance(self) -> None:
        every = [TopicPartition(TICKS, partition) for partition in range(PARTITIONS)]
        if self.positions:
            self.on_revoke(self, every)
        self.on_assign(self, every)

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.positions = {each.partition: each.offset for each in partitions}

    def seek(self, to: TopicPartition) -> None:
        self.positions[to.partition] = to.offset

    def commit(self, **_: object) -> None:
        pass

    def get_watermark_offsets(self, of: TopicPartition, cached: bool) -> tuple[int, int]:
        return self.log.first_offset, len(self.log.records[of.partition])

    def close(self) -> None:
        pass

    def consume(self, _count: int, _timeout_s: float) -> list[Record]:
        if not self.script:
            self.stop.set()
            return []
        action = self.script.pop(0)
        if action == "rebalance":
            self.rebalance()
        elif action == "other":
            self.run_other()
        elif action == "kill":
            raise Killed
        elif isinstance(action, tuple):
            return self.read(*action)
        else:
            return action(self)
        return []

    def read(self, partition: int, count: int) -> list[Record]:
        start = self.positions[partition]
        taken = self.log.records[partition][start : start + count]
        self.positions[partition] = start + len(taken)
        return taken


def run(
    log: Log,
    data_dir: Path,
    script: list[Any],
    other: list[Any] | None = None,
    *,
    rows: int = 7,
    raw_format: RawFormat = "parquet",
) -> None:
    stop = threading.Event()
    storage = StorageSettings(data_dir=data_dir, flush_rows=rows, raw_format=raw_format)
    archive = Archive(log, storage, closed_after_s=120, logs=ONE_LOG)  # pyright: ignore[reportArgumentType]
    (other_format,) = set(FORMATS) - {raw_format}
    reader = Reader(
        log, script, stop, lambda: run(log, data_dir, other or [], rows=4, raw_format=other_format)
    )
    with mock.patch("ingestor.archive.consumer.Consumer", return_value=reader):
        archive.run(stop)


@contextmanager
def killing(call: str, after: int, done: bool) -> Iterator[None]:
    """End the process at the `after`-th use of a system call, before or after it was `done`."""
    real, uses = getattr(os, call), itertools.count()
    dead = False

    def replaced(*args: Any, **options: Any) -> Any:
        nonlocal dead
        if not dead and next(uses) < after:
            return real(*args, **options)
        if done and not dead:
            real(*args, **options)
        dead = True
        raise Killed

    def unlink(*args: Any, **options: Any) -> None:
        if dead:  # whoever is dead does not tidy up either
            raise Killed
        real_unlink(*args, **options)

    real_unlink = os.unlink
    with mock.patch.object(os, call, replaced), mock.patch.object(os, "unlink", unlink):
        yield


READ = st.tuples(st.integers(0, PARTITIONS - 1), st.integers(1, 12))
SCRIPT = st.lists(st.one_of(READ, READ, READ, st.sampled_from(["rebalance", "other", "kill"])), max_size=8)
CRASH = st.one_of(st.none(), st.tuples(st.sampled_from(["fsync", "link"]), st.integers(0, 8), st.booleans()))
LIFE = st.tuples(SCRIPT, st.lists(READ, min_size=2, max_size=8), CRASH, st.sampled_from(FORMATS))
STEPS_NS = st.sampled_from([0, NS, -NS, 20 * 60 * NS, HOUR_NS])


@st.composite
def logs(draw: st.DrawFn) -> list[list[bytes]]:
    columns: list[list[bytes]] = []
    for _ in range(PARTITIONS):
        time_ns, column = TEN_NS, []
        for step_ns in draw(st.lists(STEPS_NS, min_size=1, max_size=30)):
            time_ns += step_ns
            column.append(b"unreadable" if draw(st.integers(0, 9)) == 0 else tick(time_ns))
        columns.append(column)
    return columns


@settings(max_examples=60, deadline=None)
@given(logs(), st.lists(LIFE, max_size=4))
# The first holds 6 records when the second stores 4 and 4: it must be refused, and go on after those.
@example(
    [[tick(TEN_NS)] * 20, [tick(TEN_NS)]],
    [([(0, 6), "other", (0, 6), (0, 3)], [(0, 4), (0, 4)], None, "parquet")],
)
# Killed between the claim and the name: who comes next finishes the file, whatever its own format.
@example(
    [[tick(TEN_NS)] * 20, [tick(TEN_NS)]],
    [([(0, 9)], [(0, 4)] * 2, ("link", 0, True), "ndjson"), ([(0, 9)], [(0, 4)] * 2, None, "parquet")],
)
def test_every_offset_is_stored_exactly_once(
    values: list[list[bytes]], lives: list[tuple[list[Any], list[Any], Any, RawFormat]]
) -> None:
    log = Log(values)
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        for script, other, crash, raw_format in lives:
            try:
                with nullcontext() if crash is None else killing(*crash):
                    run(log, data_dir, script, other, raw_format=raw_format)
            except Killed:
                continue
        run(log, data_dir, [(partition, 100) for partition in range(PARTITIONS)])

        seen: Counter[tuple[int, int]] = Counter()
        raw_dir = data_dir / "raw"
        folders = [folder for _, folder in hour_folders(raw_dir / TICKS)]
        assert [path for folder in folders for path in folder.glob("*.claim")] == []
        for path in [path for folder in folders for _, path in files_in(folder)]:
            assert not is_ndjson(path) or footer_path(path).exists()
            footer = read_footer(path)
            found = RawReader(raw_dir).files(TICKS, footer.min_time_ns, footer.min_time_ns + 1)
            assert path in [file.path for file in found]
            assert footer.max_time_ns - footer.min_time_ns < HOUR_NS + 2 * DISORDER_NS
            seen.update((footer.partition, o) for o in range(footer.first_offset, footer.last_offset + 1))
        assert seen == Counter((p, o) for p, column in enumerate(values) for o in range(len(column)))
        assert RawReader(raw_dir).read(TICKS, 0, 2**62).num_rows == sum(map(len, values))


def test_an_archive_that_another_one_overtook_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log([[tick(TEN_NS)] * 20, [tick(TEN_NS)]])
    run(log, tmp_path, [(0, 6), "other", (0, 6), (0, 3)], [(0, 4), (0, 4)])
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "another writer has stored from this offset on" in line
    assert line.endswith("nothing is stored twice, reading on from there")


def test_what_was_read_before_the_log_lost_more_is_stored(tmp_path: Path) -> None:
    log = Log([[tick(TEN_NS)] * 10, []])

    def read_then_lose(reader: Reader) -> list[Record]:
        log.first_offset = 8
        return [*reader.read(0, 5), Evicted(0, 5, b"")]

    run(log, tmp_path, [read_then_lose, (0, 100)])
    reader = RawReader(tmp_path / "raw")
    stored = reader.read(TICKS, 0, 2**62, columns=["kafka_offset"]).column(0).to_pylist()
    assert stored == [0, 1, 2, 3, 4, 8, 9]
    assert [(gap.first_offset, gap.last_offset) for gap in reader.offset_gaps(TICKS)] == [(5, 7)]


class Stepped(threading.Thread):
    """A writer of `rows` records from offset 0 on that waits before each system call until told to go on."""

    def __init__(self, raw_dir: Path, raw_format: RawFormat, rows: int, killed_at: int | None) -> None:
        super().__init__(daemon=True)
        self.rows, self.outcome = rows, "killed"
        self._file = OpenFile(raw_dir, TICKS, LOG_ID, 0, 0, raw_format)
        self._file.append(to_batch(TICKS, 0, 0, [tick(TEN_NS)] * rows, lambda _: 0, None), 0)
        self._killed_at, self._calls = killed_at, itertools.count()
        self._waits, self._goes = threading.Semaphore(0), threading.Semaphore(0)
        self.ended = False

    def run(self) -> None:
        try:
            self.pause()
            self._file.publish()
            self.outcome = "stored"
        except CollisionError:
            self.outcome = "refused"
        except Killed:
            pass
        finally:
            self.ended = True
            self._waits.release()

    def pause(self) -> None:
        if self._killed_at is not None and next(self._calls) >= self._killed_at:
            raise Killed
        self._waits.release()
        assert self._goes.acquire(timeout=20)

    def arrive(self) -> None:
        assert self._waits.acquire(timeout=20)

    def step(self) -> None:
        self._goes.release()
        self.arrive()


@contextmanager
def stepping() -> Iterator[None]:
    """Make every `Stepped` pause before each system call that names a file."""

    def pausing(call: str) -> Any:
        real = getattr(os, call)

        def replaced(*args: Any, **options: Any) -> Any:
            thread = threading.current_thread()
            if isinstance(thread, Stepped):
                thread.pause()
            return real(*args, **options)

        return mock.patch.object(os, call, replaced)

    with pausing("link"), pausing("unlink"), pausing("stat"):
        yield


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(*[st.tuples(st.sampled_from(FORMATS), st.one_of(st.none(), st.integers(1, 20)))] * 2),
    st.lists(st.integers(0, 1), max_size=60),
)
def test_of_two_writers_of_any_formats_step_by_step_one_stores(
    writers: tuple[tuple[RawFormat, int | None], ...], turns: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder, stepping():
        raw_dir = Path(folder)
        pair = [
            Stepped(raw_dir, raw_format, rows, killed_at)
            for (raw_format, killed_at), rows in zip(writers, (3, 5), strict=True)
        ]
        for writer in pair:
            writer.start()
            writer.arrive()
        position = 0
        for turn in itertools.chain(turns, itertools.cycle([0, 1])):
            living = [writer for writer in pair if not writer.ended]
            if not living:
                break
            (pair[turn] if not pair[turn].ended else living[0]).step()
            # What an onlooker takes for stored stays stored, and has one length.
            seen = stored_offsets(raw_dir, TICKS, LOG_ID).get(0, 0)
            assert seen == position or position == 0
            position = seen
        for writer in pair:
            writer.join()
        stored = [writer for writer in pair if writer.outcome == "stored"]
        assert len(stored) <= 1
        if stored:
            assert position == stored[0].rows
        # Whoever comes next stores the rest.
        if not position:
            file = OpenFile(raw_dir, TICKS, LOG_ID, 0, 0)
            file.append(to_batch(TICKS, 0, 0, [tick(TEN_NS)] * 4, lambda _: 0, None), 0)
            with suppress(CollisionError):  # it finishes what a killed one had claimed
                file.publish()
        (found,) = [path for _, hour in hour_folders(raw_dir / TICKS) for _, path in files_in(hour)]
        assert read_footer(found).rows in (3, 4, 5)
        assert RawReader(raw_dir).read(TICKS, 0, 2**62).num_rows == read_footer(found).rows
