"""``cryptovol ingest``: broker, feed and archive in one process, from a clean start to a clean stop.

The feed runs on the event loop of the main thread, the archive in a thread of its own: it reads the broker
like any other consumer. Stopping goes upstream first: the feed ends, the publisher waits for its
acknowledgements, the archive stores everything up to the last one, the broker closes.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ingestor.archive.consumer import Archive
from ingestor.archive.storage_lock import StorageLock
from ingestor.errors import USAGE, CryptovolError
from ingestor.feed.counters import FeedCounters
from ingestor.feed.feed import Feed
from ingestor.feed.session import check_address
from ingestor.hour_reporter import HourReporter
from ingestor.kafka.broker import Broker, connect
from ingestor.kafka.logs import LogWatch
from ingestor.kafka.publisher import Offsets, PublishCounters, Publisher, PublishError
from ingestor.kafka.spill import Spill
from ingestor.settings.sections import EMBEDDED, Settings

LOG = logging.getLogger(__name__)

#: How long a stop waits for the broker's last acknowledgements, and then for the archive (in addition to
#: `flush_s`: another archive that owns some of the partitions stores them when it always does).
FLUSH_TIMEOUT_S = 30.0
ARCHIVE_TIMEOUT_S = 30.0
PROGRESS_EVERY_S = 5.0


class IngestError(CryptovolError):
    """Recording failed or ended with unstored messages; the message is one line."""


class IngestSetupError(IngestError):
    """The options exclude each other; the message is one line."""

    exit_code = USAGE


@dataclass(frozen=True)
class IngestOptions:
    """Options of a recording.

    Attributes:
        products: instead of the configured ones.
        url: instead of the configured one.
        duration_s: stop after this long.
        until_closed: stop when the server closes with code 1000.
        stay: with `until_closed`, keep broker and archive after that until a signal, so that other programs
            can read the embedded broker to its end.
        with_archive: write raw storage; an embedded broker needs it.
        with_feed: read the exchange; without it the archive runs alone on a real broker.
        connect_timeout_s: with `duration_s` or `until_closed`, the run fails after this long without a
            readable frame; a run without an end tries for ever.
        embedded_broker: never touch the configured broker, bring an embedded one.
        shared_archive: allow other shared archives to write the same raw storage.
    """

    products: Sequence[str] | None = None
    url: str | None = None
    duration_s: float | None = None
    until_closed: bool = False
    stay: bool = False
    with_archive: bool = True
    with_feed: bool = True
    connect_timeout_s: float = 20.0
    embedded_broker: bool = False
    shared_archive: bool = False

    @property
    def give_up_after_s(self) -> float | None:
        """Longest time without a readable frame; None where the run has no end."""
        return self.connect_timeout_s if self.until_closed or self.duration_s is not None else None

    def check(self) -> None:
        """Check the options before a broker answers.

        Raises:
            IngestSetupError: the parts cannot work together.
        """
        if not self.with_archive and not self.with_feed:
            raise IngestSetupError("with neither feed nor archive there is nothing to do")
        if self.stay and not self.until_closed:
            raise IngestSetupError("without --until-closed the feed has no end to stay after")
        if self.shared_archive and not self.with_archive:
            raise IngestSetupError("without an archive there is none to share")

    def check_with(self, broker: Broker) -> None:
        """Check the parts against the broker.

        Raises:
            IngestSetupError: an embedded broker needs both feed and archive.
        """
        if broker.is_embedded and not self.with_archive:
            raise IngestSetupError(
                "the embedded broker drops records that are not archived: it needs the archive"
            )
        if broker.is_embedded and not self.with_feed:
            raise IngestSetupError("an embedded broker is empty: the archive alone needs a real one")


#: The configured market through the configured broker, until a signal.
_DEFAULT_OPTIONS = IngestOptions()


@dataclass(frozen=True)
class Started:
    """Addresses and folders, reported once the broker answers and before the first frame."""

    bootstrap_servers: str
    embedded: bool
    url: str | None
    products: tuple[str, ...]
    raw_dir: str | None

    @classmethod
    def of(cls, settings: Settings, options: IngestOptions, broker: Broker) -> Started:
        """Return where a run of these options reads and writes."""
        coinbase = settings.coinbase
        return cls(
            bootstrap_servers=broker.bootstrap_servers,
            embedded=broker.is_embedded,
            url=(options.url or coinbase.url) if options.with_feed else None,
            products=tuple(options.products or coinbase.products) if options.with_feed else (),
            raw_dir=str(settings.storage.raw_dir) if options.with_archive else None,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "event": "started",
            "bootstrap_servers": self.bootstrap_servers,
            "embedded_broker": self.embedded,
            "url": self.url,
            "products": list(self.products),
            "raw_dir": self.raw_dir,
        }


@dataclass(frozen=True)
class IngestSummary:
    """Result of a recording.

    Attributes:
        ended: ``closed`` by the server, ``duration``, or ``signal``.
        seconds: how long it ran.
        feed: counts of the feed; None for the archive alone.
        kafka: counts of its messages; None for the archive alone.
        archived_offsets: next offset by topic and partition that raw storage does not hold yet.
        waited_for_room_s: how long the socket was not read for want of room in the broker.
    """

    ended: str
    seconds: float
    feed: FeedCounters | None
    kafka: PublishCounters | None
    archived_offsets: Offsets
    waited_for_room_s: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "event": "summary",
            "ended": self.ended,
            "seconds": round(self.seconds, 3),
            "feed": self.feed.as_dict() if self.feed else None,
            "kafka": self.kafka.as_dict() if self.kafka else None,
            "archived_offsets": self.archived_offsets,
            "waited_for_room_s": round(self.waited_for_room_s, 3),
        }


def run_ingest(
    settings: Settings,
    options: IngestOptions = _DEFAULT_OPTIONS,
    *,
    on_started: Callable[[Started], None] | None = None,
    on_progress: Callable[[FeedCounters, PublishCounters], None] | None = None,
    on_feed_ended: Callable[[], None] | None = None,
) -> IngestSummary:
    """Record until a signal, or until the end set in `options`.

    Args:
        settings: the effective configuration.
        options: options of the recording.
        on_started: called once, when the broker answers and a signal would stop cleanly.
        on_progress: called every few seconds.
        on_feed_ended: called when the server has closed and the recorder stays.

    Raises:
        IngestSetupError: the options exclude each other.
        StorageHeldError: another archive writes the same raw storage.
        AddressError: `options.url` is not a WebSocket address.
        IngestError: messages were unacknowledged or unarchived at the end.
        BrokerError, FeedError, PublishError, ArchiveError: a part failed.
    """
    options.check()
    check_address(options.url or settings.coinbase.url)
    # The default pool keeps memory for each thread that ever allocated: 20 to 40 MB more at the peak.
    pa.set_memory_pool(pa.system_memory_pool())
    kafka = settings.kafka
    if options.embedded_broker:
        kafka = kafka.model_copy(update={"bootstrap_servers": EMBEDDED, "security": {}})
    with connect(kafka) as broker:
        options.check_with(broker)
        broker.ensure_topics()
        started = Started.of(settings, options, broker)
        lock = (
            StorageLock(settings.storage.raw_dir, shared=options.shared_archive)
            if options.with_archive
            else nullcontext()
        )
        with LogWatch(broker) as logs, lock:
            recorder = _Recorder(
                settings, options, broker, logs, started, on_started, on_progress, on_feed_ended
            )
            return asyncio.run(recorder.run())


class _Recorder:
    """One run, on the event loop."""

    def __init__(
        self,
        settings: Settings,
        options: IngestOptions,
        broker: Broker,
        logs: LogWatch,
        started: Started,
        on_started: Callable[[Started], None] | None,
        on_progress: Callable[[FeedCounters, PublishCounters], None] | None,
        on_feed_ended: Callable[[], None] | None,
    ) -> None:
        self._settings = settings
        self._options = options
        self._broker = broker
        self._logs = logs
        self._started = started
        self._on_started = on_started
        self._on_progress = on_progress
        self._on_feed_ended = on_feed_ended
        self._stop = asyncio.Event()
        self._ended = "closed"
        self._counters: FeedCounters | None = None
        self._published: PublishCounters | None = None
        self._acknowledged: Offsets = {}
        self._waited_for_room_s = 0.0
        dagster = settings.dagster
        self._reporter = HourReporter(dagster.ui_url) if dagster.report_closed_hours else None

    async def run(self) -> IngestSummary:
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        duration_s = self._options.duration_s
        timer = None if duration_s is None else loop.call_later(duration_s, self._end, "duration")
        self._logs.when_another_broker_answers(
            lambda: loop.call_soon_threadsafe(self._end, "another broker answers")
        )
        with self._stopping_at_signals(loop):
            if self._on_started is not None:
                self._on_started(self._started)
            archive = self._start_archive(loop)
            try:
                if self._started.url is None:
                    await self._stop.wait()
                else:
                    await self._record(self._started.url, archive)
            finally:
                if timer is not None:
                    timer.cancel()
                if archive is not None:
                    await asyncio.to_thread(self._finish, archive)
        return IngestSummary(
            ended=self._ended,
            seconds=time.monotonic() - began,
            feed=self._counters,
            kafka=self._published,
            archived_offsets=_by_topic(archive.stored_offsets()) if archive else {},
            waited_for_room_s=self._waited_for_room_s,
        )

    async def _record(self, url: str, archive: Archive | None) -> None:
        """Run the feed; at any end, wait until its messages are acknowledged."""
        publisher = Publisher(
            self._broker,
            stored_offsets=archive.stored_offsets if archive else None,
            unarchived_limit_bytes=self._settings.ingest.embedded_unarchived_bytes,
            spill=self._spill(),
            logs=self._logs,
        )
        feed = Feed(
            url,
            self._settings.coinbase.channels,
            self._started.products,
            self._settings.ingest,
            publisher,
            until_closed=self._options.until_closed,
            give_up_after_s=self._options.give_up_after_s,
        )
        publisher.on_recreation = feed.log_recreated
        self._counters = feed.counters
        reporting = asyncio.create_task(self._report(feed.counters, publisher))
        try:
            await feed.run(self._stop)
            if self._options.stay and not self._stop.is_set():
                if self._on_feed_ended is not None:
                    self._on_feed_ended()
                await self._stop.wait()
            self._stop.set()  # later errors are not the reason of the end
            if self._logs.state.other_broker:
                raise IngestError(self._logs.state.other_broker)
            if not await publisher.drain(FLUSH_TIMEOUT_S):
                raise IngestError(
                    f"Kafka at {self._started.bootstrap_servers} acknowledged nothing more for "
                    f"{FLUSH_TIMEOUT_S:g} s: the last {publisher.in_flight} messages may not be in it"
                )
        except PublishError as error:
            # The client's own words for it name a symptom.
            raise IngestError(self._logs.state.other_broker or str(error)) from error
        finally:
            reporting.cancel()
            self._acknowledged = publisher.acknowledged_offsets()
            self._published = publisher.counters
            self._waited_for_room_s = publisher.blocked_s
            publisher.close()
        if self._options.give_up_after_s is not None and not feed.heard and self._ended != "signal":
            raise IngestError(f"{url}: no readable frame: {feed.last_end}")

    def _start_archive(self, loop: asyncio.AbstractEventLoop) -> Archive | None:
        if self._started.raw_dir is None:
            return None

        def look() -> None:
            if archive.error is not None:
                loop.call_soon_threadsafe(self._end, "archive failed")

        archive = Archive(
            self._broker,
            self._settings.storage,
            closed_after_s=self._settings.dagster.closed_after_s,
            revised_after_s=self._settings.dagster.revised_after_s,
            logs=self._logs,
            on_progress=look,
            on_hour_closed=self._reporter.report if self._reporter else None,
        )
        archive.start()
        return archive

    def _finish(self, archive: Archive) -> None:
        """Wait until the archive has stored all messages of this run, then end it."""
        wanted = {
            (topic, partition): offset + 1
            for topic, partitions in self._acknowledged.items()
            for partition, offset in partitions.items()
        }
        try:
            archive.drain_to(wanted, self._settings.storage.flush_s + ARCHIVE_TIMEOUT_S)
        finally:
            archive.stop(drain=False)
            if self._reporter is not None:
                self._reporter.close()

    def _spill(self) -> Spill | None:
        """Return the folder of messages that wait for a real broker; the embedded one is never away."""
        if self._broker.is_embedded:
            return None
        return Spill(self._settings.storage.data_dir, self._settings.ingest.spill_bytes)

    async def _report(self, counters: FeedCounters, publisher: Publisher) -> None:
        while self._on_progress is not None:
            await asyncio.sleep(PROGRESS_EVERY_S)
            self._on_progress(counters, publisher.counters)

    def _end(self, why: str) -> None:
        if not self._stop.is_set():
            self._ended = why
            self._stop.set()

    @contextmanager
    def _stopping_at_signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Stop cleanly at the first SIGINT or SIGTERM, also while the rest is being stored.

        A second one ends the process at once: a KeyboardInterrupt would wait for the archive.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # signals belong to the main thread
            return

        def stop(name: str) -> None:
            self._end("signal")
            for number in before:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
            LOG.info("%s: stopping cleanly; send it again to stop at once", name)

        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            loop.add_signal_handler(number, stop, number.name)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)


def _by_topic(offsets: Mapping[tuple[str, int], int]) -> Offsets:
    result: Offsets = {}
    for (topic, partition), offset in sorted(offsets.items()):
        result.setdefault(topic, {})[partition] = offset
    return result
