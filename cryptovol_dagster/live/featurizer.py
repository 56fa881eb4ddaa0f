"""The loop of ``cryptovol featurize``: ticks, trades and events in, ticks.features and files out.

Belongs here: the followed partitions, and the order of steps. Published rows are the reference: each
partition resumes after the newest published rows (see `recovery`), and no row is published twice. Committed
offsets only show the lag.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from cryptovol_dagster.core.features.catalogue import feature_hash, own_feature_names
from cryptovol_dagster.core.features.live_rows import LiveRows
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import DAY_NS
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.live.clients import (
    BATCH_RECORDS,
    POLL_S,
    LiveClients,
    LogReader,
    check_error,
    open_clients,
)
from cryptovol_dagster.live.clock import FeedClock
from cryptovol_dagster.live.errors import LiveError
from cryptovol_dagster.live.events import EventReader, KnownGaps
from cryptovol_dagster.live.partition import Added, Partition, Polled
from cryptovol_dagster.live.parts import FeatureParts
from cryptovol_dagster.live.progress import LiveProgress, LiveStarted, LiveSummary
from cryptovol_dagster.live.published_log import PublishedLog
from cryptovol_dagster.live.publishing import RowPublisher
from cryptovol_dagster.live.recovery import Recovery
from ingestor.envelope import FEATURES_TOPIC, TICKS, TRADES
from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.kafka.broker import Broker
from ingestor.settings.sections import LiveSettings

LOG = logging.getLogger(__name__)

#: A turn lasts until the next second may close, at most so long: each costs as much as reading 10 ticks.
_LONGEST_TURN_NS = NS // 10
#: Librdkafka waits whole milliseconds.
_MS_NS = 1_000_000
_PROGRESS_EVERY_S = 5.0
_DELIVERY_TIMEOUT_S = 30.0
#: While catching up, rows are written as soon as so many wait: after a kill these are computed again.
_ROWS_WAITING = 20_000
#: After the newest event, seconds close for the length of a gap and a checkpoint's interval.
_CARRY_BEYOND_GAP_NS = 10 * NS


class Featurizer:
    """Computes the features of every second of every product, as the seconds close. Use `run`, once."""

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
        """Prepare the folder of the rows.

        Args:
            broker: where the topics are.
            spec: what to compute.
            live: lateness and intervals.
            raw_dir: raw storage, for the look-back; it may be absent.
            out: folder of the rows as Parquet.
            on_rows: called with each batch of rows that is published.
            on_progress: called every few seconds.

        Raises:
            LiveError: `out` cannot be used, or contains features of another version.
        """
        self.broker, self.spec, self.live = broker, spec, live
        self.raw_dir, self.out = raw_dir, out
        self.on_rows, self.on_progress = on_rows, on_progress
        self.version = feature_hash(spec)
        self.parts = FeatureParts(out, self.version)

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
            LiveError: rows cannot be published or written; everything published before stays.
            BrokerError: the broker cannot be used.
        """
        began, broker = time.monotonic(), self.broker
        try:
            partitions = self._ensure_topics()
            with open_clients(broker) as clients:
                loop = _Loop(self, clients, stop, partitions)
                loop.read_past_events()
                if on_started is not None:
                    topic = broker.topic(FEATURES_TOPIC)
                    on_started(LiveStarted(broker.bootstrap_servers, topic, str(self.out), self.version))
                ended = loop.run(began, duration_s, until_idle_s)
        except KafkaException as error:
            where = broker.bootstrap_servers
            raise LiveError(f"reading from Kafka at {where} failed: {error.args[0].str()}") from error
        return LiveSummary(ended, time.monotonic() - began, loop.progress, str(self.out))

    def _ensure_topics(self) -> int:
        """Create topics that are missing; return the number of partitions of ticks and trades."""
        broker = self.broker
        broker.ensure_topics()
        partitions = broker.partitions(TICKS)
        if (others := broker.partitions(TRADES)) != partitions:
            raise LiveError(
                f"{broker.topic(TICKS)} has {partitions} partitions and {broker.topic(TRADES)} "
                f"{others}: trades are read from the partition of their ticks, so both need the same number"
            )
        return partitions


class _Loop:
    """One run: the assigned partitions, and when each thing is due next."""

    def __init__(
        self, task: Featurizer, clients: LiveClients, stop: threading.Event, n_partitions: int
    ) -> None:
        broker, spec = task.broker, task.spec
        lateness_ns = round(task.live.lateness_s * NS)
        self._broker, self._live, self._stop = broker, task.live, stop
        self._on_rows, self._on_progress = task.on_rows, task.on_progress
        self._ticks, self._trades, self._parts = clients.ticks, clients.trades, task.parts
        self._n_partitions, self._n_outputs = n_partitions, broker.partitions(FEATURES_TOPIC)
        self._bar_ns = spec.bar_ns
        self._gaps = KnownGaps()
        self._events = EventReader(broker, clients.events, self._gaps)
        self._feed = FeedClock(round(spec.gap_after_s * NS) + _CARRY_BEYOND_GAP_NS)
        self._publisher = RowPublisher(
            clients.producer,
            topic=broker.topic(FEATURES_TOPIC),
            bootstrap_servers=broker.bootstrap_servers,
            feature_version=task.version,
            names=own_feature_names(spec),
            stop=stop,
        )
        log = LogReader(broker, clients.reader)
        self._recovery = Recovery(
            broker,
            log,
            RawStore(task.raw_dir),
            spec,
            self._gaps,
            lateness_ns=lateness_ns,
            newest_published=PublishedLog(
                broker,
                log,
                spec,
                lateness_ns=lateness_ns,
                partitions=n_partitions,
                partition_of=self._partition_of,
                written_end_ns=lambda product: task.parts.newest_end_ns(product, spec.bar_ns),
            ).newest,
            partition_of=self._partition_of,
        )
        self._partitions: dict[int, Partition] = {}
        self._heard_at_ns = 0
        self._commit_due_s = self._flush_due_s = self._progress_due_s = 0.0
        self._close_due_ns = 0
        self.progress = LiveProgress()

    def read_past_events(self) -> None:
        """Read every loss before the first tick that follows it."""
        self._events.read_to_end()

    def run(self, began: float, duration_s: float | None, until_idle_s: float | None) -> str:
        """Join the group and follow the feed; return why it ended: ``signal``, ``duration`` or ``idle``."""
        try:
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
            self._update_progress()
            return ended
        finally:
            # Closing the clients revokes the partitions: then no row of them is left to publish.
            self._partitions.clear()

    def _turn(self) -> None:
        wait_ms = -(-max(self._close_due_ns - time.monotonic_ns(), 0) // _MS_NS)
        self._take_ticks(self._ticks.consume(BATCH_RECORDS, wait_ms / 1_000))
        self._take_trades(self._trades.consume(BATCH_RECORDS, 0.0))
        self._publisher.poll()
        self._take_events()
        self._close(time.monotonic_ns())
        now_s = time.monotonic()
        if now_s >= self._flush_due_s or self._parts.rows_waiting >= _ROWS_WAITING:
            self._flush_due_s = now_s + self._live.flush_s
            self._parts.flush()
        if now_s >= self._commit_due_s:
            self._commit_due_s = now_s + self._live.commit_s
            self._commit(self._partitions, asynchronous=True)
        if self._on_progress is not None and now_s >= self._progress_due_s:
            self._progress_due_s = now_s + _PROGRESS_EVERY_S
            self._update_progress()
            self._on_progress(self.progress)

    def _is_idle(self, until_idle_s: float) -> bool:
        """Return whether the feed was silent so long, all was read, and every second with ticks is closed."""
        if time.monotonic_ns() - self._heard_at_ns < until_idle_s * NS:
            return False
        return bool(self._partitions) and all(each.is_finished for each in self._partitions.values())

    def _update_progress(self) -> None:
        progress = self.progress
        for each in self._partitions.values():
            each.count_into(progress)
        known = {*progress.products, *(p for each in self._partitions.values() for p in each.state.products)}
        progress.products = tuple(sorted(known))
        if progress.newest_bar_end_ns is not None and self._feed.newest_ns is not None:
            progress.behind_s = round((self._feed.newest_ns - progress.newest_bar_end_ns) / NS, 3)

    # Assignment

    def _partition_of(self, product: str) -> int:
        """Return where librdkafka puts the messages of a key."""
        return zlib.crc32(product.encode()) % self._n_partitions

    def _outputs(self, number: int) -> Collection[int]:
        """Return the partitions of ticks.features that hold the rows of a partition of ticks."""
        return [number] if self._n_outputs == self._n_partitions else range(self._n_outputs)

    def _join(self) -> None:
        name = self._broker.topic(TICKS)
        if self._broker.is_embedded:
            every = [TopicPartition(name, partition) for partition in range(self._n_partitions)]
            self._assigned(self._ticks, every)
        else:
            self._ticks.subscribe(
                [name], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
            )

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            self._recover(each.partition)
        consumer.assign(self._places(TICKS))
        self._assign_trades()
        name = self._broker.topic(TICKS)
        LOG.info("partitions of %s: %s", name, ", ".join(map(str, sorted(self._partitions))) or "none")

    def _recover(self, number: int) -> Partition:
        recovered = self._recovery.recover(number)
        partition = recovered.partition
        for rows in recovered.rows:
            self._publish(rows)
        self.progress.recovered[number] = recovered.summary
        if partition.state.newest_ns is not None:
            # Raw storage does not show whether the feed is alive: its time is not advanced from there.
            self._feed.hear(partition.state.newest_ns, time.monotonic_ns() - DAY_NS)
        self._partitions[number] = partition
        self._learn_gaps()
        return partition

    def _recover_again(self, number: int) -> None:
        """Recover a partition whose next offset the log no longer has: raw storage may have it."""
        self._publisher.flush(_DELIVERY_TIMEOUT_S)
        self._parts.flush()
        partition = self._recover(number)
        self._ticks.seek(TopicPartition(self._broker.topic(TICKS), number, partition.next_offset))
        self._assign_trades()

    def _assign_trades(self) -> None:
        """Read the trades of the products whose ticks are read here."""
        self._trades.assign(self._places(TRADES))

    def _places(self, topic: str) -> list[TopicPartition]:
        name, is_ticks = self._broker.topic(topic), topic == TICKS
        return [
            TopicPartition(name, number, each.next_offset if is_ticks else each.next_trade)
            for number, each in self._partitions.items()
        ]

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        leaving = {each.partition for each in partitions} & self._partitions.keys()
        if not leaving:
            return
        self._leave(leaving)
        for number in leaving:
            del self._partitions[number]
        self._assign_trades()

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Another instance has them already, and computes the unwritten rows.
        self._parts.drop()
        for each in partitions:
            self._partitions.pop(each.partition, None)
        self._assign_trades()

    def _leave(self, leaving: Collection[int]) -> None:
        """Publish and write all rows, then commit the offsets."""
        self._update_progress()
        if left := self._publisher.flush(_DELIVERY_TIMEOUT_S):
            raise LiveError(
                f"Kafka at {self._broker.bootstrap_servers} did not acknowledge the last {left} rows within "
                f"{_DELIVERY_TIMEOUT_S:g} s; the next run publishes them"
            )
        self._parts.flush()
        self._commit(leaving, asynchronous=False)

    def _commit(self, numbers: Collection[int], *, asynchronous: bool) -> None:
        """Commit the read offsets, once all rows computed from them are acknowledged."""
        if self._broker.is_embedded or not numbers:
            return
        offsets = [place for place in self._places(TICKS) if place.partition in numbers]
        if self._publisher.flush(POLL_S if asynchronous else _DELIVERY_TIMEOUT_S):
            return
        try:
            self._ticks.commit(offsets=offsets, asynchronous=asynchronous)
        except KafkaException as error:
            # Offsets only show the lag; the next commit makes up for one that fails.
            LOG.debug("offsets were not committed: %s", error.args[0].str())

    # Reading

    def _take_ticks(self, messages: Sequence[Message]) -> None:
        polled = Polled.of(messages)
        for number, error in polled.expired.items():
            if number in self._partitions:
                self._recover_again(number)
            else:
                check_error(error, self._broker, TICKS)
        for _, error in polled.errors:
            check_error(error, self._broker, TICKS)
        for number, records in polled.records.items():
            # Others were revoked while the batch was on its way.
            if (each := self._partitions.get(number)) is not None:
                self._add_ticks(each, records)
                each.clock.at_end = each.next_offset >= self._end(self._ticks, TICKS, number)
        for number in polled.ended & self._partitions.keys():
            self._partitions[number].clock.at_end = True

    def _add_ticks(self, each: Partition, records: Sequence[Message]) -> None:
        added = each.add_ticks(records, self._gaps.by_connection)
        self.progress.ticks += added.rows
        now_ns = self._count(added)
        if not added.rows:
            return
        newest_ns = each.state.newest_ns
        assert newest_ns is not None
        if added.restarted:
            LOG.warning("event time jumped to %s: another recording begins", ns_to_rfc3339(newest_ns))
            self.progress.restarts += 1
            self._feed.restart(newest_ns, now_ns)
        self._feed.hear(newest_ns, now_ns)

    def _take_trades(self, messages: Sequence[Message]) -> None:
        polled = Polled.of(messages)
        for number in polled.records.keys() & self._partitions.keys():
            self._partitions[number].trades_at_end = False
        for number in polled.ended & self._partitions.keys():
            self._partitions[number].trades_at_end = True
        for number in polled.expired.keys() & self._partitions.keys():
            self._recover_again(number)
        for number, error in polled.errors:
            if number in self._partitions:
                check_error(error, self._broker, TRADES)
        for number, records in polled.records.items():
            if (each := self._partitions.get(number)) is not None:
                added = each.add_trades(records)
                each.trades_at_end = each.next_trade >= self._end(self._trades, TRADES, number)
                self.progress.trades += added.rows
                self._count(added)

    def _end(self, consumer: Consumer, topic: str, number: int) -> int:
        """Return the end of a log when it was read last.

        The event of an end comes only with the next answer that has no record: half a second later.
        """
        place = TopicPartition(self._broker.topic(topic), number)
        _, end = consumer.get_watermark_offsets(place, cached=True)
        return end if end >= 0 else 2**63

    def _count(self, added: Added) -> int:
        """Count the records of a batch; return the wall clock."""
        now_ns = time.monotonic_ns()
        self.progress.unreadable += added.unreadable
        if added.is_news:
            self._heard_at_ns = now_ns
        return now_ns

    def _take_events(self) -> None:
        self._events.read()
        self._learn_gaps()
        newest_ns = self._events.take_newest_ns()
        # Before the first tick, an event does not show the time of ticks.
        if newest_ns is not None and any(
            each.state.newest_ns is not None for each in self._partitions.values()
        ):
            self._feed.hear(newest_ns, time.monotonic_ns())

    def _learn_gaps(self) -> None:
        for each in self._partitions.values():
            each.state.learn_gaps(self._gaps.by_connection)

    # Publishing

    def _close(self, now_ns: int) -> None:
        feed_ns = self._feed.reading(now_ns)
        self._close_due_ns = now_ns + _LONGEST_TURN_NS
        for each in self._partitions.values():
            before_ns, until_ns = each.until_ns, each.closing(now_ns, feed_ns)
            if until_ns is None:
                continue
            if before_ns is not None and until_ns > before_ns:
                # It goes on with the wall clock: so long until the end of the next bar.
                self._close_due_ns = min(self._close_due_ns, now_ns + self._bar_ns - until_ns % self._bar_ns)
            self._publish(each.state.close(until_ns, self._feed.newest_ns or 0))
            each.note_closed(until_ns, self._bar_ns)
            if (closed_until_ns := each.take_closed(now_ns)) is not None:
                self._publisher.publish_closing(each.number, closed_until_ns, self._outputs(each.number))

    def _publish(self, rows: LiveRows) -> None:
        """Add rows to the files, and publish those that are new or changed."""
        if not len(rows):
            return
        self._parts.add(rows)
        news = rows.take(~rows.known)
        self.progress.count(rows, news)
        self._publisher.publish(news)
        if self._on_rows is not None and len(news):
            self._on_rows(news)
