"""The feed: connects for ever, and passes each connection's frames and events to the publisher.

A clean end of the server (1000), a restart of it (1001), a broken line (1006), silence: all are reconnected.
Only with `until_closed` a clean end is the end of the recording.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Sequence
from typing import Any

from ingestor.errors import CryptovolError
from ingestor.feed.backoff import Backoff
from ingestor.feed.connection import Connection
from ingestor.feed.counters import FeedCounters
from ingestor.feed.session import EndReason, Session, SessionEnd
from ingestor.kafka.logs import Recreation
from ingestor.kafka.publisher import Publisher
from ingestor.settings.sections import IngestSettings
from ingestor.times import NS

LOG = logging.getLogger(__name__)

#: Acknowledgements matter to checkpoints, and to room, which `publish` sees to itself at high rates; each
#: wake-up costs about 0.3 ms of a core.
_POLL_S = 0.1
_CLEAN_CLOSE = 1000
#: A connection that carried this much of the market resets the backoff.
_WORTHWHILE_NS = 10 * NS


class FeedError(CryptovolError):
    """The feed cannot go on; the message is one line."""


class Feed:
    """Keeps a connection to the exchange and publishes its frames.

    Args:
        url: ws:// or wss:// address, checked by `check_address`.
        channels: channels to subscribe to.
        products: products to follow.
        settings: time limits and bounds.
        publisher: where messages go.
        until_closed: end when the server closes cleanly (code 1000) instead of reconnecting.
        give_up_after_s: end with an error after this long without a readable frame; None never gives up. With
            `until_closed` this applies always, otherwise only until the first readable frame.
        rng: source of the backoff's jitter.
    """

    def __init__(
        self,
        url: str,
        channels: Sequence[str],
        products: Sequence[str],
        settings: IngestSettings,
        publisher: Publisher,
        *,
        until_closed: bool = False,
        give_up_after_s: float | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.counters = FeedCounters()
        #: End of the last connection or attempt, in one line.
        self.last_end = "no connection was opened"
        self._url = url
        self._channels = tuple(channels)
        self._products = tuple(products)
        self._settings = settings
        self._publisher = publisher
        self._until_closed = until_closed
        self._give_up_after_s = give_up_after_s
        self._backoff = Backoff(settings.backoff_initial_s, settings.backoff_max_s, rng)
        self._link: _Link | None = None
        self._previous: Connection | None = None
        self._future_limit_ns = int(settings.future_limit_s * NS)
        self._heard_at = time.monotonic()
        self._unpublished: list[dict[str, Any]] = []

    @property
    def heard(self) -> bool:
        """Whether any connection had a readable frame."""
        return self._previous is not None

    async def run(self, stop: asyncio.Event) -> None:
        """Feed until `stop` is set, or until the server ends the recording with `until_closed`.

        At any end, the last connection's final checkpoint is scheduled at the publisher; drain that
        after.

        Raises:
            FeedError: there was no readable frame for too long.
            PublishError: the broker finally refused a message.
        """
        background = [asyncio.create_task(self._poll()), asyncio.create_task(self._checkpoints())]
        feeding = asyncio.create_task(self._connections(stop))
        try:
            await asyncio.wait({feeding, *background}, return_when=asyncio.FIRST_COMPLETED)
            for task in (feeding, *background):
                if task.done():
                    task.result()
        finally:
            for task in (feeding, *background):
                task.cancel()
            await asyncio.gather(feeding, *background, return_exceptions=True)

    async def _connections(self, stop: asyncio.Event) -> None:
        self._heard_at = time.monotonic()
        while not stop.is_set():
            # While the broker is away, reconnecting would only pile up messages about it.
            if not await _unless_stopped(self._publisher.wait_for_room(), stop):
                return
            end = await self._one_connection(stop)
            if end.reason is EndReason.STOPPED:
                return
            self.last_end = end.detail
            if self._until_closed and end.close_code == _CLEAN_CLOSE:
                LOG.info("%s: the server ended the recording", self._url)
                return
            self._give_up_or_not(end)
            wait_s = self._backoff.next_s(end.retry_after_s)
            LOG.warning("%s: %s; connecting again in %.1f s", self._url, end.detail, wait_s)
            await _unless_stopped(asyncio.sleep(wait_s), stop)

    async def _one_connection(self, stop: asyncio.Event) -> SessionEnd:
        connection = Connection(uuid.uuid4().hex, self._publisher, self.counters, self._future_limit_ns)
        link = self._link = _Link(self, self._publisher, connection)
        session = Session(self._url, self._channels, self._products, self._settings, link)
        try:
            end = await session.run(stop)
        except asyncio.CancelledError:
            link.ended(SessionEnd(EndReason.STOPPED, "asked to stop"))
            raise
        finally:
            self._link = None
        return link.ended(end)

    def _give_up_or_not(self, end: SessionEnd) -> None:
        if self._give_up_after_s is None:
            return
        if not self._until_closed and self.heard:
            return
        if time.monotonic() - self._heard_at >= self._give_up_after_s:
            raise FeedError(f"{self._url}: no readable frame for {self._give_up_after_s:g} s: {end.detail}")

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            self._publisher.poll()

    async def _checkpoints(self) -> None:
        while True:
            await asyncio.sleep(self._settings.checkpoint_s)
            if self._link is not None:
                self._link.connection.checkpoint()

    def log_recreated(self, recreation: Recreation, acknowledged: dict[int, int]) -> None:
        """Publish that a topic got another log: on the open connection, or else on the next one.

        Args:
            recreation: of which topic.
            acknowledged: for each partition of the old log the last offset acknowledged.
        """
        detail = {
            "topic": recreation.topic,
            "old_log": recreation.old_log,
            "new_log": recreation.new_log,
            "acknowledged": acknowledged,
        }
        if self._link is not None and self._link.is_open:
            self._link.connection.publish_event("log_recreated", detail)
        else:
            self._unpublished.append(detail)

    # Life of a connection; called by its _Link.

    def connected(self, connection: Connection, server: str) -> None:
        """Process a successful handshake."""
        self.last_end = "connected, but nothing readable was sent"
        counters = self.counters
        counters.connections += 1
        counters.reconnects += counters.connections > 1
        connection.publish_event("connected", {"url": self._url, "server": server})
        LOG.info("%s: connected (%s)", self._url, server or "server gives no name")
        for detail in self._unpublished:
            connection.publish_event("log_recreated", detail)
        self._unpublished.clear()

    def heard_first(self, connection: Connection) -> None:
        """Process a connection's first readable frame."""
        previous = self._previous
        if previous is not None and previous.event_time_ns is not None and connection.event_time_ns:
            detail: dict[str, Any] = {
                "previous_connection_id": previous.connection_id,
                "hole_ms": (connection.event_time_ns - previous.event_time_ns) // 1_000_000,
            }
            connection.publish_event("resumed", detail)
            LOG.info("%s: resumed after a hole of %.1f s", self._url, detail["hole_ms"] / 1000)
        self._previous = connection

    def over(self, connection: Connection) -> None:
        """Process the end of a connection that had carried frames."""
        self._heard_at = time.monotonic()
        begin_ns, end_ns = connection.first_event_time_ns, connection.event_time_ns
        if begin_ns is not None and end_ns is not None and end_ns - begin_ns >= _WORTHWHILE_NS:
            self._backoff.reset()


class _Link:
    """Links one session to the connection's bookkeeping (the session's `Receiver`)."""

    def __init__(self, feed: Feed, publisher: Publisher, connection: Connection) -> None:
        self.connection = connection
        self.wait_for_room = publisher.wait_for_room
        self._feed = feed
        self._publisher = publisher
        self._opened_at: float | None = None

    @property
    def blocked(self) -> bool:
        return self._publisher.blocked

    @property
    def is_open(self) -> bool:
        return self._opened_at is not None

    def opened(self, server: str) -> None:
        self._opened_at = time.monotonic()
        self._feed.connected(self.connection, server)

    def on_frame(self, data: bytes, received_at_ns: int) -> str | None:
        connection = self.connection
        first = not connection.readable_frames
        channel = connection.on_frame(data, received_at_ns)
        if first and connection.readable_frames:
            self._feed.heard_first(connection)
        return channel

    def ended(self, end: SessionEnd) -> SessionEnd:
        """Publish how the connection ended, and promise its last checkpoint."""
        connection = self.connection
        if self._opened_at is None:
            self._feed.counters.failed_attempts += end.reason is EndReason.CONNECT_FAILED
            return end
        if not connection.readable_frames and connection.last_error:
            end = SessionEnd(
                EndReason.REFUSED,
                f"{end.detail}; the exchange reported: {connection.last_error}",
                end.close_code,
            )
        if end.reason in (EndReason.FRAME_SILENCE, EndReason.HEARTBEAT_SILENCE):
            connection.publish_event("stale", {"reason": end.reason.value, "detail": end.detail})
        connection.disconnected(
            {
                "reason": end.reason.value,
                "detail": end.detail,
                "close_code": end.close_code,
                "frames": connection.frames,
                "last_sequence": connection.last_sequence,
                "open_s": round(time.monotonic() - self._opened_at, 3),
            }
        )
        if connection.readable_frames:
            self._feed.over(connection)
        return end


async def _unless_stopped(work: Any, stop: asyncio.Event) -> bool:
    """Wait for `work`; False where `stop` came first."""
    working, stopping = asyncio.ensure_future(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
