"""The consumer loop of ``cryptovol featurize``: ticks, trades and events in, ticks.features and files out.

What has been published is the truth: each partition begins where the newest published rows (and the files)
end, with its look-back replayed from raw storage, and rows that were told before are not told again.
Committed offsets only show the lag.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from cryptovol_dagster.core.features.catalogue import feature_hash, lookback_bars, own_feature_names
from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.features.live import LONGEST_SILENCE_NS, LiveFeatures, LiveRows, ToldRow
from cryptovol_dagster.core.market.bars import TRADES_KNOWN_FOR_NS, tick_reach_ns
from cryptovol_dagster.core.market.cleaning import TickCounts
from cryptovol_dagster.core.market.ticks import TickColumns
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import HOUR_NS
from cryptovol_dagster.lake.raw_ticks import RawStore, tick_columns, trade_columns
from cryptovol_dagster.live.clock import FeedClock, PartitionClock
from cryptovol_dagster.live.errors import LiveError
from cryptovol_dagster.live.parts import FeatureParts
from cryptovol_dagster.live.progress import LiveProgress, LiveStarted, LiveSummary
from ingestor.archive import positions
from ingestor.archive.schema import to_batch
from ingestor.envelope import (
    DECODERS,
    EVENTS,
    FEATURES_TOPIC,
    TICKS,
    TRADES,
    FeatureMessage,
    FeedEvent,
    encode,
)
from ingestor.kafka.broker import Broker
from ingestor.settings.sections import LiveSettings

LOG = logging.getLogger(__name__)

GROUP = "cryptovol-featurizer"
_BATCH_RECORDS = 4_000
_POLL_S = 0.05
_CLOSE_EVERY_NS = NS // 10
_PROGRESS_EVERY_S = 5.0
#: How soon another instance takes over the partitions of a dead one.
_SESSION_TIMEOUT_MS = 6_000
_DELIVERY_TIMEOUT_S = 30.0
#: Messages read back at first to see what was told; four times as many until it is enough.
_TAIL_MESSAGES = 2_000
_READ_TIMEOUT_S = 30.0
#: Catching up, rows are written as soon as so many wait: what is published and not written is made again.
_ROWS_WAITING = 20_000
#: Ticks are published after they happened; clocks differ by less than this.
_SKEW_NS = 60 * NS
#: After the newest heard of, seconds close for the length of a gap and a checkpoint's interval.
_CARRY_BEYOND_GAP_NS = 10 * NS
_PASSING_ERRORS = (
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._MAX_POLL_EXCEEDED,
)


@dataclass
class _Partition:
    """An assigned partition: its rows so far, its clock, and the next offsets to read.

    Attributes:
        state: its rows so far.
        clock: until when its ticks are complete.
        next_offset: of ticks.raw.
        next_trade: offset in trades.raw, where the trades of the same products lie.
        trades_at_end: whether all trades in the log have been read.
        trades_until_ns: event time of the last one read; None before the first.
        counted: what of its cleaning is in the progress.
        beyond_reach: how much of what came too late is.
    """

    state: LiveFeatures
    clock: PartitionClock
    next_offset: int
    next_trade: int
    trades_at_end: bool = False
    trades_until_ns: int | None = None
    counted: TickCounts = field(default_factory=TickCounts)
    beyond_reach: int = 0


class Featurizer:
    """Features of every second of every product, as the seconds close. Use `run`, once.

    Args:
        broker: where the topics are.
        spec: what to compute.
        live: lateness and intervals.
        raw_dir: raw storage, for the look-back; it may be absent.
        out: folder of the rows as Parquet.
        on_rows: called with each batch of rows that is told.
        on_progress: called every few seconds.
    """

    def __init__(
        self,
        broker: Broker,
        spec: TimescaleSpec,
        live: LiveSettings,
        *,
        raw_dir: Path,
        out: Path,
        on_rows: Callable[[LiveRows], None] | None = None,
        on_progress: Callable[[LiveProgress], None] | None = None,
    ) -> None:
        self._broker, self._spec, self._live = broker, spec, live
        self._lateness_ns = round(live.lateness_s * NS)
        self._raw_dir, self._store, self._out = raw_dir, RawStore(raw_dir), out
        self._on_rows, self._on_progress = on_rows, on_progress
        self._revisable_ns = LiveFeatures(spec, lateness_ns=self._lateness_ns).revisable_ns
        self._version = feature_hash(spec)
        self._names = own_feature_names(spec)
        self._parts = FeatureParts(out, self._version)
        self._feed = FeedClock(round(spec.gap_after_s * NS) + _CARRY_BEYOND_GAP_NS)
        self._partitions: dict[int, _Partition] = {}
        self._gaps: dict[str, np.ndarray[Any, np.dtype[np.int64]]] = {}
        self._failure: LiveError | None = None
        self._stop = threading.Event()
        self._heard_at_ns = 0
        self._commit_due_s = self._flush_due_s = self._progress_due_s = 0.0
        self._close_due_ns = 0
        self.progress = LiveProgress()

    def run(
        self,
        stop: threading.Event,
        *,
        duration_s: float | None = None,
        until_idle_s: float | None = None,
        on_started: Callable[[LiveStarted], None] | None = None,
    ) -> LiveSummary:
        """Follow the feed until `stop` is set, for `duration_s`, or until it was silent for `until_idle_s`.

        Raises:
            LiveError: rows cannot be published or written; everything told before stays.
            BrokerError: the broker cannot be used.
        """
        self._stop = stop
        began = time.monotonic()
        try:
            ended = self._run(began, duration_s, until_idle_s, on_started)
        except KafkaException as error:
            where = self._broker.bootstrap_servers
            raise LiveError(f"reading from Kafka at {where} failed: {error.args[0].str()}") from error
        return LiveSummary(ended, time.monotonic() - began, self._current_progress(), str(self._out))

    def _run(
        self,
        began: float,
        duration_s: float | None,
        until_idle_s: float | None,
        on_started: Callable[[LiveStarted], None] | None,
    ) -> str:
        broker = self._broker
        broker.ensure_topics()
        self._tick_partitions = broker.partitions(TICKS)
        if (others := broker.partitions(TRADES)) != self._tick_partitions:
            raise LiveError(
                f"{broker.topic(TICKS)} has {self._tick_partitions} partitions and {broker.topic(TRADES)} "
                f"{others}: trades are looked for in the partition of their ticks, so give both as many"
            )
        self._producer = Producer(
            broker.producer_config() | {"linger.ms": 5, "queue.buffering.max.messages": 100_000}
        )
        self._reader = Consumer(broker.consumer_config(broker.topic(f"{GROUP}-reader")))
        self._events = Consumer(broker.consumer_config(broker.topic(f"{GROUP}-events")) | _WITH_ENDS)
        self._trades = Consumer(broker.consumer_config(broker.topic(f"{GROUP}-trades")) | _WITH_ENDS)
        self._consumer = Consumer(self._consumer_config())
        try:
            self._read_events_to_their_end()
            if on_started is not None:
                topic = broker.topic(FEATURES_TOPIC)
                on_started(LiveStarted(broker.bootstrap_servers, topic, str(self._out), self._version))
            self._join()
            self._heard_at_ns = time.monotonic_ns()
            now_s = time.monotonic()
            self._flush_due_s = now_s + self._live.flush_s
            self._commit_due_s, self._progress_due_s = now_s + self._live.commit_s, now_s
            while True:
                self._turn()
                if self._stop.is_set():
                    ended = "signal"
                elif duration_s is not None and time.monotonic() - began >= duration_s:
                    ended = "duration"
                elif until_idle_s is not None and self._is_idle(until_idle_s):
                    ended = "idle"
                else:
                    continue
                break
            self._leave(self._partitions)
            return ended
        finally:
            # Whatever ended it: closing gives the partitions back, and nothing is left to be told of them.
            self._partitions.clear()
            self._consumer.close()
            self._events.close()
            self._trades.close()
            self._reader.close()
            self._producer.purge()

    def _turn(self) -> None:
        self._take(self._consumer.consume(_BATCH_RECORDS, _POLL_S))
        self._take_trades(self._trades.consume(_BATCH_RECORDS, 0.0))
        self._producer.poll(0)
        self._check()
        now_ns = time.monotonic_ns()
        if now_ns >= self._close_due_ns:
            self._close_due_ns = now_ns + _CLOSE_EVERY_NS
            self._read_events()
            self._close(now_ns)
        now_s = time.monotonic()
        if now_s >= self._flush_due_s or self._parts.rows_waiting >= _ROWS_WAITING:
            self._flush_due_s = now_s + self._live.flush_s
            self._parts.flush()
        if now_s >= self._commit_due_s:
            self._commit_due_s = now_s + self._live.commit_s
            self._commit(self._partitions, asynchronous=True)
        if self._on_progress is not None and now_s >= self._progress_due_s:
            self._progress_due_s = now_s + _PROGRESS_EVERY_S
            self._on_progress(self._current_progress())

    def _is_idle(self, until_idle_s: float) -> bool:
        """Whether nothing came for so long, all was read, and every second that had a tick is closed."""
        if time.monotonic_ns() - self._heard_at_ns < until_idle_s * NS:
            return False
        for each in self._partitions.values():
            newest_ns, end_ns = each.state.newest_ns, each.state.end_ns
            if not (each.clock.at_end and each.trades_at_end) or (
                newest_ns is not None and (end_ns is None or end_ns <= newest_ns)
            ):
                return False
        return bool(self._partitions)

    def _current_progress(self) -> LiveProgress:
        progress = self.progress
        for each in self._partitions.values():
            counts, before = each.state.counts, each.counted
            progress.late += counts.late - before.late
            progress.duplicates += counts.duplicates - before.duplicates
            progress.rejected += counts.rejected - before.rejected
            progress.beyond_reach += each.state.beyond_reach - each.beyond_reach
            each.counted, each.beyond_reach = counts, each.state.beyond_reach
        known = {*progress.products, *(p for each in self._partitions.values() for p in each.state.products)}
        progress.products = tuple(sorted(known))
        if progress.newest_bar_end_ns is not None and self._feed.newest_ns is not None:
            progress.behind_s = round((self._feed.newest_ns - progress.newest_bar_end_ns) / NS, 3)
        return progress

    # Assignment

    def _consumer_config(self) -> dict[str, Any]:
        # Systems that share a broker have prefixes of their own, and so have their groups.
        return (
            self._broker.consumer_config(self._broker.topic(GROUP))
            | _WITH_ENDS
            | {
                "session.timeout.ms": _SESSION_TIMEOUT_MS,
                "heartbeat.interval.ms": _SESSION_TIMEOUT_MS // 4,
                "queued.max.messages.kbytes": 8 * 1024,
                "fetch.queue.backoff.ms": 10,
            }
        )

    def _join(self) -> None:
        name = self._broker.topic(TICKS)
        if self._broker.is_embedded:
            every = [TopicPartition(name, partition) for partition in range(self._tick_partitions)]
            self._assigned(self._consumer, every)
        else:
            self._consumer.subscribe(
                [name], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
            )

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            self._partitions[each.partition] = self._recovered(each.partition)
        name = self._broker.topic(TICKS)
        consumer.assign(
            [TopicPartition(name, number, each.next_offset) for number, each in self._partitions.items()]
        )
        self._assign_trades()
        LOG.info("partitions of %s: %s", name, ", ".join(map(str, sorted(self._partitions))) or "none")

    def _assign_trades(self) -> None:
        """Read the trades of the products whose ticks are read here."""
        name = self._broker.topic(TRADES)
        self._trades.assign(
            [TopicPartition(name, number, each.next_trade) for number, each in self._partitions.items()]
        )

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        leaving = {each.partition for each in partitions} & self._partitions.keys()
        if not leaving:
            return
        self._leave({number: self._partitions[number] for number in leaving})
        for number in leaving:
            del self._partitions[number]
        self._assign_trades()

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Another instance has them already: what was not written, it computes again.
        self._parts.drop()
        for each in partitions:
            self._partitions.pop(each.partition, None)
        self._assign_trades()

    def _leave(self, leaving: dict[int, _Partition]) -> None:
        """Bring everything told out of this process, then say how far it goes."""
        self._current_progress()
        left = self._producer.flush(_DELIVERY_TIMEOUT_S)
        self._check()
        if left:
            raise LiveError(
                f"Kafka at {self._broker.bootstrap_servers} did not acknowledge the last {left} rows within "
                f"{_DELIVERY_TIMEOUT_S:g} s; the next run tells them"
            )
        self._parts.flush()
        self._commit(leaving, asynchronous=False)

    def _commit(self, partitions: dict[int, _Partition], *, asynchronous: bool) -> None:
        """Commit how far was read, once all that was told from it is acknowledged."""
        if self._broker.is_embedded or not partitions:
            return
        name = self._broker.topic(TICKS)
        offsets = [TopicPartition(name, number, each.next_offset) for number, each in partitions.items()]
        if self._producer.flush(_POLL_S if asynchronous else _DELIVERY_TIMEOUT_S):
            return
        self._check()
        try:
            self._consumer.commit(offsets=offsets, asynchronous=asynchronous)
        except KafkaException as error:
            # They only show the lag; the next commit covers for one that fails.
            LOG.debug("offsets were not committed: %s", error.args[0].str())

    # Recovery

    def _recovered(self, partition: int) -> _Partition:
        """A partition as it was after what was published of it, and the offset to go on with."""
        spec, broker = self._spec, self._broker
        told, resume_ns = self._told(partition)
        log_id = broker.log_id(TICKS)
        log_start, log_end = broker.offsets(TICKS, partition)
        # Looked up before raw storage is read: what it gains meanwhile comes twice, and repeats are left out.
        stored = positions.stored_offsets(self._raw_dir, TICKS, log_id).get(partition)
        stored_trades = positions.stored_offsets(self._raw_dir, TRADES, broker.log_id(TRADES)).get(partition)
        log_of_trades = broker.offsets(TRADES, partition)
        if resume_ns is None:
            resume_ns = self._first_time(log_id, partition, log_start)
        state = LiveFeatures(
            spec,
            lateness_ns=self._lateness_ns,
            silent_until_ns=resume_ns or 0,
            told=[row for row in told if row.bar_end_ns > (resume_ns or 0)],
        )
        read_from_ns = trades_until_ns = None
        next_trade = log_of_trades[0]
        if resume_ns is not None:
            reach_ns = lookback_bars(spec) * spec.bar_ns + tick_reach_ns(spec) + _SKEW_NS
            read_from_ns = resume_ns - reach_ns
            next_trade = self._offset_after_raw(
                TRADES,
                partition,
                stored_trades,
                log_of_trades,
                read_from_ns - TRADES_KNOWN_FOR_NS,
                bool(told),
            )
            trades_until_ns = self._replay_raw(
                state,
                partition,
                read_from_ns,
                silent_until_ns=resume_ns,
                trades_wait=next_trade < log_of_trades[1],
            )
        offset = self._offset_after_raw(
            TICKS, partition, stored, (log_start, log_end), read_from_ns, bool(told)
        )
        self.progress.recovered[partition] = {
            "told_until_ns": max((row.bar_end_ns for row in told), default=None),
            "raw_ticks": state.counts.read,
            "kafka_offset": offset,
        }
        if state.newest_ns is not None:
            # Raw storage says nothing of whether the feed is alive: its time is not carried on from there.
            self._feed.hear(state.newest_ns, time.monotonic_ns() - _LONG_AGO_NS)
        return _Partition(
            state,
            PartitionClock(self._lateness_ns),
            offset,
            next_trade,
            trades_until_ns=trades_until_ns,
            counted=state.counts,
            beyond_reach=state.beyond_reach,
        )

    def _resume_at(self, told: Sequence[ToldRow]) -> int:
        """Bar end up to which rows are final, published and in the files, as far as `told` says."""
        newest: dict[str, int] = {}
        for row in told:
            newest[row.product_id] = max(row.bar_end_ns, newest.get(row.product_id, 0))
        last_ns = max(newest.values())
        # A product that left the feed long ago has nothing more to be told.
        current = {name: end for name, end in newest.items() if end > last_ns - LONGEST_SILENCE_NS}
        ends = list(current.values())
        for product in current:
            written_ns = self._parts.newest_end_ns(product, self._spec.bar_ns)
            # Without a file, or with one of long ago, the rows of the last day are written anew.
            ends.append(max(written_ns or 0, last_ns - _LONG_AGO_NS))
        return min(ends) - self._revisable_ns

    def _first_time(self, log_id: str, partition: int, log_start: int) -> int | None:
        """Start of the bar of the first tick that Kafka (an embedded one: raw storage) has of this log."""
        times = [
            file.footer.min_time_ns
            for file in self._store.reader.files(TICKS, 0, 2**62)
            if (file.footer.log_id, file.footer.partition) == (log_id, partition)
            and (self._broker.is_embedded or file.footer.last_offset >= log_start)
        ]
        return min(times) // self._spec.bar_ns * self._spec.bar_ns if times else None

    def _replay_raw(
        self,
        state: LiveFeatures,
        partition: int,
        from_ns: int,
        *,
        silent_until_ns: int,
        trades_wait: bool,
    ) -> int | None:
        """Feed what raw storage holds since `from_ns`; tell what an earlier run did not.

        Returns:
            Event time of the last trade it holds; None where it holds none. Seconds close no further: it may
            hold later ticks already, and none at all while the log's trades all wait (`trades_wait`).
        """
        files = self._store.reader.files(TICKS, from_ns, 2**62)
        if not files:
            return None
        end_ns = max(file.footer.max_time_ns for file in files) + 1
        self._learn(self._store.gaps(from_ns - HOUR_NS, end_ns))
        state.learn_gaps(self._gaps)
        ticked = self._store.reader.read(TICKS, from_ns, end_ns, ["product_id"])
        # Trades may be stored further than ticks; Kafka is read on from there.
        traded = self._store.reader.read(TRADES, from_ns, 2**62, ["product_id", "event_time_ns"])
        met = {*ticked["product_id"].unique().to_pylist(), *traded["product_id"].unique().to_pylist()}
        products = [product for product in sorted(met - {None}) if self._partition_of(product) == partition]
        known = [product in products for product in traded["product_id"].to_pylist()]
        times_ns = traded["event_time_ns"].to_numpy()[np.array(known, dtype=np.bool_)]
        trades_until_ns = int(times_ns.max()) if len(times_ns) else None
        close_until_ns = (0 if trades_wait else end_ns) if trades_until_ns is None else trades_until_ns
        rows: list[LiveRows] = []
        for span in ((from_ns - TRADES_KNOWN_FOR_NS, from_ns), (end_ns, 2**62)):
            state.add_trades(self._store.trades(*span, products))
        edges = [from_ns, *range((from_ns // HOUR_NS + 1) * HOUR_NS, end_ns, HOUR_NS), end_ns]
        for first_ns, last_ns in pairwise(edges):
            state.add_trades(self._store.trades(first_ns, last_ns, products))
            ticks = self._store.ticks(first_ns, last_ns, products, {})
            if state.add(ticks):
                # An earlier recording that raw storage also holds: what came of it was told long ago.
                rows.clear()
                state.silent_until_ns = silent_until_ns
            if state.newest_ns is not None:
                until_ns = min(state.newest_ns, close_until_ns) - self._lateness_ns
                rows.append(state.close(until_ns, state.newest_ns))
        for part in rows:
            self._tell(part)
        return trades_until_ns

    def _partition_of(self, product: str) -> int:
        """Where librdkafka puts the messages of a key."""
        return zlib.crc32(product.encode()) % self._tick_partitions

    def _offset_after_raw(
        self,
        topic: str,
        partition: int,
        stored: int | None,
        log: tuple[int, int],
        read_from_ns: int | None,
        was_told: bool,
    ) -> int:
        start, end = log
        if stored is not None and start <= stored <= end:
            return stored
        if stored is not None:
            LOG.warning(
                "%s partition %d: raw storage ends at offset %d, the log holds %d … %d: going on there",
                topic, partition, stored, start, end,
            )  # fmt: skip
            return start
        if not was_told or read_from_ns is None or self._broker.is_embedded:
            return start
        # Published after it happened, so the first message published since then is early enough.
        name = self._broker.topic(topic)
        (found,) = self._reader.offsets_for_times(
            [TopicPartition(name, partition, max(read_from_ns - _SKEW_NS, 0) // 1_000_000)], timeout=10
        )
        return found.offset if found.offset >= 0 else start

    def _told(self, partition: int) -> tuple[list[ToldRow], int | None]:
        """The newest rows that were published of a partition's products, and the bar end to go on after."""
        outputs = self._broker.partitions(FEATURES_TOPIC)
        # The same keys over as many partitions: what is made of one partition lies in one.
        numbers = [partition] if outputs == self._tick_partitions else list(range(outputs))
        logs = {number: self._broker.offsets(FEATURES_TOPIC, number) for number in numbers}
        size = _TAIL_MESSAGES
        while True:
            rows: list[ToldRow] = []
            for number, (start, end) in logs.items():
                values = self._read_range(FEATURES_TOPIC, number, max(start, end - size), end)
                rows += _newest_rows(self._decoded(values, partition), self._version, self._names)
            is_all = all(end - size <= start for start, end in logs.values())
            if not rows and is_all:
                return [], None
            if rows:
                resume_ns, oldest_ns = self._resume_at(rows), min(row.bar_end_ns for row in rows)
                # The oldest of a tail may be a row told again; those told once reach back less far.
                if oldest_ns < resume_ns - self._revisable_ns:
                    return rows, resume_ns
                if is_all:
                    return rows, max(resume_ns, oldest_ns - self._spec.bar_ns)
            size *= 4

    def _decoded(self, values: Sequence[bytes], partition: int) -> Iterator[FeatureMessage]:
        for value in values:
            try:
                message: FeatureMessage = DECODERS[FEATURES_TOPIC].decode(value)
            except msgspec.MsgspecError as error:
                raise LiveError(
                    f"{self._broker.topic(FEATURES_TOPIC)} holds a message that is no row: {error}"
                ) from error
            if self._partition_of(message.product_id) == partition:
                yield message

    def _read_range(self, topic: str, partition: int, first: int, end: int) -> list[bytes]:
        """Values of the records in ``[first, end)``."""
        if first >= end:
            return []
        self._reader.assign([TopicPartition(self._broker.topic(topic), partition, first)])
        values: list[bytes] = []
        deadline_s = time.monotonic() + _READ_TIMEOUT_S
        try:
            while time.monotonic() < deadline_s:
                for message in self._reader.consume(_BATCH_RECORDS, _POLL_S):
                    error, offset = message.error(), message.offset()
                    if error is not None:
                        self._on_error(error, topic)
                        continue
                    assert offset is not None
                    if offset < end:
                        values.append(message.value() or b"")
                    if offset >= end - 1:
                        return values
        finally:
            self._reader.unassign()
        raise LiveError(
            f"Kafka at {self._broker.bootstrap_servers} did not give {topic} partition {partition} offsets "
            f"{first} to {end - 1} within {_READ_TIMEOUT_S:g} s"
        )

    # Reading

    def _read_events_to_their_end(self) -> None:
        """Know of every loss before the first tick that follows it."""
        name = self._broker.topic(EVENTS)
        waiting = set(range(self._broker.partitions(EVENTS)))
        self._events.assign([TopicPartition(name, number, OFFSET_BEGINNING) for number in waiting])
        deadline_s = time.monotonic() + _READ_TIMEOUT_S
        while waiting:
            if time.monotonic() >= deadline_s:
                raise LiveError(f"{name} could not be read to its end within {_READ_TIMEOUT_S:g} s")
            waiting -= self._read_events(_POLL_S)

    def _read_events(self, timeout_s: float = 0.0) -> set[int]:
        """Take in what has come; tell which partitions were read to their end."""
        ended: set[int] = set()
        while messages := self._events.consume(_BATCH_RECORDS, timeout_s):
            gaps: dict[str, list[int]] = {}
            for message in messages:
                error, number = message.error(), message.partition()
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF and number is not None:
                        ended.add(number)
                    else:
                        self._on_error(error, EVENTS)
                    continue
                self._take_event(message.value() or b"", gaps)
            if gaps:
                self._learn({name: np.array(sorted(firsts)) for name, firsts in gaps.items()})
        return ended

    def _take_event(self, value: bytes, gaps: dict[str, list[int]]) -> None:
        try:
            event: FeedEvent = DECODERS[EVENTS].decode(value)
        except msgspec.MsgspecError:
            return  # raw storage keeps and counts it
        if event.kind == "gap" and isinstance(first := event.detail.get("from_sequence"), int):
            gaps.setdefault(event.connection_id, []).append(first)
        if event.event_time_ns is not None and any(
            each.state.newest_ns is not None for each in self._partitions.values()
        ):
            self._feed.hear(event.event_time_ns, time.monotonic_ns())

    def _learn(self, gaps: dict[str, Any]) -> None:
        for connection, firsts in gaps.items():
            known = self._gaps.get(connection, np.empty(0, np.int64))
            self._gaps[connection] = np.union1d(known, np.asarray(firsts, dtype=np.int64))
        for each in self._partitions.values():
            each.state.learn_gaps(self._gaps)

    def _take(self, messages: Sequence[Message]) -> None:
        batches: dict[int, list[Message]] = {}
        ended: list[int] = []
        for message in messages:
            error, number = message.error(), message.partition()
            if error is None:
                assert number is not None
                batches.setdefault(number, []).append(message)
                if number in ended:
                    ended.remove(number)
            elif error.code() == KafkaError._PARTITION_EOF and number is not None:
                ended.append(number)
            elif error.code() == KafkaError._AUTO_OFFSET_RESET and number in self._partitions:
                self._recover_again(number)
            else:
                self._on_error(error, TICKS)
        for number, batch in batches.items():
            each = self._partitions.get(number)
            if each is not None:  # else revoked while the batch was on its way
                self._take_batch(number, each, batch)
        for number in ended:
            if number in self._partitions:
                self._partitions[number].clock.at_end = True

    def _recover_again(self, partition: int) -> None:
        """The log no longer has the next offset: raw storage may."""
        self._producer.flush(_DELIVERY_TIMEOUT_S)
        self._parts.flush()
        each = self._partitions[partition] = self._recovered(partition)
        self._consumer.seek(TopicPartition(self._broker.topic(TICKS), partition, each.next_offset))
        self._assign_trades()

    def _take_trades(self, messages: Sequence[Message]) -> None:
        batches: dict[int, list[Message]] = {}
        for message in messages:
            error, number = message.error(), message.partition()
            if number not in self._partitions:
                continue
            if error is None:
                batches.setdefault(number, []).append(message)
                self._partitions[number].trades_at_end = False
            elif error.code() == KafkaError._PARTITION_EOF:
                self._partitions[number].trades_at_end = True
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                self._recover_again(number)
            else:
                self._on_error(error, TRADES)
        for number, batch in batches.items():
            each = self._partitions[number]
            offsets = [message.offset() or 0 for message in batch]
            values = [message.value() for message in batch]
            each.next_trade = offsets[-1] + 1
            table = pa.Table.from_batches([to_batch(TRADES, number, offsets[0], values, lambda _: 0, None)])
            table = table.filter(table["product_id"].is_valid())
            if not table.num_rows:
                self.progress.unreadable += len(values)
                continue
            each.trades_until_ns = table["event_time_ns"][-1].as_py()
            trades = trade_columns(table)
            self.progress.unreadable += len(values) - len(trades)
            self.progress.trades += len(trades)
            self._heard_at_ns = time.monotonic_ns()
            each.state.add_trades(trades)

    def _take_batch(self, number: int, each: _Partition, batch: Sequence[Message]) -> None:
        offsets = [message.offset() or 0 for message in batch]
        fresh = [k for k, offset in enumerate(offsets) if offset >= each.next_offset]  # others: before a seek
        if not fresh:
            return
        messages = [batch[k] for k in fresh]
        each.clock.at_end = False
        each.next_offset = offsets[-1] + 1
        values = [message.value() for message in messages]
        table = pa.Table.from_batches([to_batch(TICKS, number, offsets[fresh[0]], values, lambda _: 0, None)])
        ticks = tick_columns(table.filter(table["product_id"].is_valid()))
        self.progress.unreadable += len(values) - len(ticks)
        self.progress.ticks += len(ticks)
        self._heard_at_ns = now_ns = time.monotonic_ns()
        self._add(each, ticks, now_ns)

    def _add(self, each: _Partition, ticks: TickColumns, now_ns: int) -> None:
        if not len(ticks):
            return
        # All that is known of lost messages, also of connections this partition has not met yet.
        each.state.learn_gaps(self._gaps)
        if each.state.add(ticks):
            assert each.state.newest_ns is not None
            LOG.warning("the feed plays another time, from %d ns on: beginning anew", each.state.newest_ns)
            self.progress.restarts += 1
            each.clock.restart()
            self._feed.restart(each.state.newest_ns, now_ns)
        assert each.state.newest_ns is not None
        self._feed.hear(each.state.newest_ns, now_ns)

    def _on_error(self, error: KafkaError, topic: str) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            return
        if error.code() in _PASSING_ERRORS or error.retriable():
            LOG.warning("Kafka at %s: %s", self._broker.bootstrap_servers, error.str())
        else:
            raise LiveError(f"reading {self._broker.topic(topic)} failed: {error.str()}")

    # Telling

    def _close(self, now_ns: int) -> None:
        feed_ns = self._feed.reading(now_ns)
        for each in self._partitions.values():
            own_ns, ahead_ns = each.state.newest_ns, feed_ns
            if not each.trades_at_end and own_ns is not None:
                # Trades wait to be read: seconds close no further than they have been.
                own_ns = None if each.trades_until_ns is None else min(own_ns, each.trades_until_ns)
                ahead_ns = None
            until_ns = each.clock.closing(now_ns, own_ns, ahead_ns)
            if until_ns is not None:
                self._tell(each.state.close(until_ns, self._feed.newest_ns or 0))

    def _tell(self, rows: LiveRows) -> None:
        if not len(rows):
            return
        self._parts.add(rows)
        news = rows.take(~rows.known)
        progress = self.progress
        progress.known += len(rows) - len(news)
        revisions = int((news.revision > 0).sum())
        progress.rows += len(news) - revisions
        progress.revisions += revisions
        progress.provisional += int(news.provisional.sum())
        progress.newest_bar_end_ns = max(int(rows.bar_end_ns.max()), progress.newest_bar_end_ns or 0)
        self._publish(news)
        if self._on_rows is not None and len(news):
            self._on_rows(news)

    def _publish(self, rows: LiveRows) -> None:
        topic = self._broker.topic(FEATURES_TOPIC)
        reasons = [reason.name.lower() for reason in Reason]
        keys = [product.encode() for product in rows.products]
        columns = (rows.product, rows.bar_end_ns, rows.revision, rows.provisional, rows.valid, rows.reason)
        for values, *cells in zip(
            rows.values.tolist(), *(column.tolist() for column in columns), strict=True
        ):
            product, bar_end_ns, revision, provisional, valid, reason = cells
            message = FeatureMessage(
                product_id=rows.products[product],
                bar_end_ns=bar_end_ns,
                feature_version=self._version,
                revision=revision,
                provisional=provisional,
                valid=valid,
                reason=reasons[reason],
                values=dict(zip(self._names, values, strict=True)),
            )
            self._produce(topic, keys[product], encode(message))

    def _produce(self, topic: str, key: bytes, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key, on_delivery=self._delivered)
                return
            except BufferError:
                # The broker is slow or away; ticks wait in Kafka meanwhile.
                self._producer.poll(0.1)
                self._check()
                if self._stop.is_set():
                    raise LiveError(
                        f"Kafka at {self._broker.bootstrap_servers} takes no more rows; "
                        "the next run tells them"
                    ) from None

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        # No delivery times out, so what comes back can never succeed.
        if error is not None and self._failure is None:
            self._failure = LiveError(f"Kafka refused a row for {message.topic()}: {error.str()}")

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


_WITH_ENDS = {"enable.partition.eof": True}
_LONG_AGO_NS = 24 * HOUR_NS


def _newest_rows(messages: Iterator[FeatureMessage], version: str, names: Sequence[str]) -> list[ToldRow]:
    """The last revision of each row that was told since the feed last began anew."""
    rows: dict[tuple[str, int], ToldRow] = {}
    newest: dict[str, int] = {}
    for message in messages:
        if message.feature_version != version:
            continue
        product, end_ns = message.product_id, message.bar_end_ns
        if end_ns < newest.get(product, end_ns) - LONGEST_SILENCE_NS:
            rows = {key: row for key, row in rows.items() if key[0] != product}
            newest[product] = end_ns
        newest[product] = max(end_ns, newest.get(product, end_ns))
        before = rows.get((product, end_ns))
        if before is not None and before.revision > message.revision:
            continue
        values = [message.values.get(name) for name in names]
        rows[product, end_ns] = ToldRow(
            product_id=product,
            bar_end_ns=end_ns,
            revision=message.revision,
            valid=message.valid,
            reason=Reason[message.reason.upper()],
            values=np.array([np.nan if value is None else value for value in values]),
        )
    return list(rows.values())
