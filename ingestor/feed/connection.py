"""One connection's frames → sequence check → messages. No sockets: bytes in, `Outlet.publish` out."""

from __future__ import annotations

import base64
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from ingestor import envelope
from ingestor.envelope import DeadLetter, EventKind, FeedEvent, TickMessage, TradeMessage
from ingestor.errors import CryptovolError
from ingestor.exchange import messages as wire
from ingestor.exchange.parse import FrameError, parse_frame, read_entry
from ingestor.exchange.reasons import cut_reason, entry_reason, printable, reason_class
from ingestor.exchange.sequence import Gap, SequenceTracker, Verdict
from ingestor.feed.counters import FeedCounters, count_bounded
from ingestor.kafka.publisher import Offsets

LOG = logging.getLogger(__name__)

NS_PER_MS = 1_000_000

#: A frame this far ahead of the receiving clock is reported once a connection; real skew is tens of ms.
_SKEW_REPORTED_NS = 1_000 * NS_PER_MS
#: Kafka clients refuse messages over 1,000,000 bytes: larger entries are dead letters, dead letters are cut.
_MAX_ENTRY_BYTES = 900_000
_MAX_DEAD_BYTES = 600_000
_MAX_EVENT_BYTES = 900_000
#: Raw storage keeps places in a frame as 16-bit numbers.
_MAX_INDEX = 2**15 - 1
#: Otherwise a server that restarts its numbers would be ignored for ever.
_MAX_REPEATS_IN_A_ROW = 100
#: A frame below this size has no entry beyond that index: each takes at least two bytes.
_MAX_BYTES_UNCHECKED = 2 * _MAX_INDEX
_MAX_DRIFT_EVENTS = 20


class SequenceBrokenError(CryptovolError):
    """The connection's numbers went back for good; it must be opened again."""


class Outlet(Protocol):
    """Interface of the publisher that a connection needs."""

    @property
    def logs(self) -> Mapping[str, str]:
        """Return, for each topic, the id of the log of the offsets passed to `after_acknowledged`."""
        ...

    def publish(self, topic: str, key: bytes, value: bytes) -> None:
        """Publish one message; never waits."""
        ...

    def after_acknowledged(self, then: Callable[[Offsets], None]) -> None:
        """Call `then` once everything published so far is acknowledged."""
        ...


class Connection:
    """Turns the frames of one connection into messages, and accounts for every sequence number.

    Args:
        connection_id: uuid hex, new for each connection.
        outlet: where messages go.
        counters: the feed's totals, added to here.
        future_limit_ns: a frame further ahead of its receiving time is a dead letter.
    """

    def __init__(
        self, connection_id: str, outlet: Outlet, counters: FeedCounters, future_limit_ns: int
    ) -> None:
        self.connection_id = connection_id
        #: Newest event time accepted on this connection; None before the first frame.
        self.event_time_ns: int | None = None
        self.first_event_time_ns: int | None = None
        self.frames = 0
        self.readable_frames = 0
        self.last_error = ""
        self._key = connection_id.encode()
        self._outlet = outlet
        self._counters = counters
        self._future_limit_ns = future_limit_ns
        self._sequence = SequenceTracker()
        self._repeats_in_a_row = 0
        self._skew_reported = False
        self._drift_events = 0
        #: Unknown channels and drift that were reported already.
        self._reported: set[str] = set()
        self._begin_span()

    @property
    def last_sequence(self) -> int:
        """Newest sequence number seen; -1 before the first frame."""
        return self._sequence.newest

    def on_frame(self, data: bytes, received_at_ns: int) -> str | None:
        """Process one frame.

        Args:
            data: the frame as received.
            received_at_ns: wall clock, ns UTC.

        Returns:
            The frame's channel, or None where the frame is unreadable.

        Raises:
            SequenceBrokenError: the numbers do not go forward any more.
        """
        counters = self._counters
        counters.frames += 1
        counters.bytes += len(data)
        self.frames += 1
        try:
            frame = parse_frame(data)
        except FrameError as error:
            self.last_error = error.reason
            if error.sequence_num is None:
                self._dead(error.reason, data, received_at_ns, None)
            elif self._in_order(error.sequence_num, None, received_at_ns):
                self._unread_frames += 1
                self._dead(error.reason, data, received_at_ns, error.sequence_num)
            return None
        if frame.sequence_num < 0:  # the exchange's error message: no number, no time
            counters.errors += 1
            self.last_error = frame.message
            self._drift({"error": frame.message}, received_at_ns)
            return frame.channel
        self.readable_frames += 1
        ahead_ns = frame.event_time_ns - received_at_ns
        in_time = ahead_ns <= self._future_limit_ns
        if not self._in_order(frame.sequence_num, frame.event_time_ns if in_time else None, received_at_ns):
            return frame.channel
        if ahead_ns > _SKEW_REPORTED_NS:
            self._report_skew(ahead_ns, received_at_ns)
        if not in_time:
            self._unread_frames += 1
            ahead = f"{ahead_ns / 1e9:.3f} s ahead of the receiving clock"
            reason = f"{printable(frame.channel)}: timestamp is {ahead}"
            self._dead(reason, data, received_at_ns, frame.sequence_num)
            return frame.channel
        self._note_time(frame.event_time_ns)
        counters.lag_ms = -ahead_ns / NS_PER_MS
        channel = frame.channel if frame.known else self._note_unknown(frame.channel, received_at_ns)
        self._span_frames[channel] += 1
        if frame.drift:
            self._note_drift(frame.drift, frame.sequence_num, received_at_ns)
        if channel == wire.TICKER or channel == wire.TRADES:
            if not self._publish_entries(frame, received_at_ns, len(data) > _MAX_BYTES_UNCHECKED):
                self._empty_frames += 1
        elif channel == wire.SUBSCRIPTIONS:
            self._publish_subscriptions(frame, received_at_ns)
        return frame.channel

    def publish_event(self, kind: EventKind, detail: dict[str, Any], at_ns: int | None = None) -> None:
        """Publish something that happened to this connection."""
        at_ns = time.time_ns() if at_ns is None else at_ns
        event = self._event(kind, detail, at_ns, self.event_time_ns)
        if len(event) > _MAX_EVENT_BYTES:
            event = self._event(kind, {"omitted_bytes": len(event)}, at_ns, self.event_time_ns)
        self._outlet.publish(envelope.EVENTS, self._key, event)

    def checkpoint(self) -> None:
        """Schedule a checkpoint over the frames since the last one: published once all are acknowledged.

        Does nothing where no frame with a number came since.
        """
        checkpoint = self._take_checkpoint()
        if checkpoint is not None:
            self._outlet.after_acknowledged(checkpoint)

    def disconnected(self, detail: dict[str, Any]) -> None:
        """Schedule the last checkpoint and, after it, the end: nothing of this connection follows."""
        checkpoint = self._take_checkpoint()
        ended = self._event("disconnected", detail, time.time_ns(), self.event_time_ns)

        def acknowledged(offsets: Offsets) -> None:
            if checkpoint is not None:
                checkpoint(offsets)
            self._outlet.publish(envelope.EVENTS, self._key, ended)

        self._outlet.after_acknowledged(acknowledged)

    def _take_checkpoint(self) -> Callable[[Offsets], None] | None:
        """Close the span of frames since the last checkpoint; None where it is empty."""
        from_sequence, to_sequence = self._span_from, self._sequence.newest
        if to_sequence < from_sequence:
            return None
        detail = {
            "from_sequence": from_sequence,
            "to_sequence": to_sequence,
            "frames": dict(self._span_frames),
            "empty_frames": self._empty_frames,
            "dead_frames": self._unread_frames,
            "missing": self._span_missing,
            "repeats": self._span_repeats,
        }
        if self._span_drift:
            detail["drift"] = dict(self._span_drift)
        event_time_ns = self.event_time_ns
        self._begin_span()

        def acknowledged(offsets: Offsets) -> None:
            logs = {topic: log for topic, log in self._outlet.logs.items() if topic in offsets}
            whole = {**detail, "offsets": offsets, "logs": logs}
            event = self._event("checkpoint", whole, time.time_ns(), event_time_ns)
            self._outlet.publish(envelope.EVENTS, self._key, event)
            self._counters.checkpoints += 1

        return acknowledged

    def _event(self, kind: EventKind, detail: dict[str, Any], at_ns: int, event_time_ns: int | None) -> bytes:
        return envelope.encode(
            FeedEvent(
                kind=kind,
                at_ns=at_ns,
                connection_id=self.connection_id,
                event_time_ns=event_time_ns,
                detail=detail,
            )
        )

    def _begin_span(self) -> None:
        """Start counting for the next checkpoint."""
        self._span_from = self._sequence.newest + 1
        self._span_frames: Counter[str] = Counter()
        self._empty_frames = 0
        self._unread_frames = 0
        self._span_missing = 0
        self._span_repeats = 0
        self._span_drift: Counter[str] = Counter()

    def _in_order(self, sequence_num: int, event_time_ns: int | None, received_at_ns: int) -> bool:
        """Check the number of a frame before all else; publish gaps."""
        verdict = self._sequence.observe(sequence_num)
        if verdict is Verdict.OK:
            self._repeats_in_a_row = 0
            return True
        if verdict is Verdict.REPEAT:
            self._counters.repeats += 1
            self._span_repeats += 1
            self._repeats_in_a_row += 1
            if self._repeats_in_a_row > _MAX_REPEATS_IN_A_ROW:
                self._drift({"sequence": "went back", "newest": self._sequence.newest}, received_at_ns)
                raise SequenceBrokenError(
                    f"{self._repeats_in_a_row} frames in a row at or below sequence {self._sequence.newest}"
                )
            return False
        self._repeats_in_a_row = 0
        self._on_gap(verdict, event_time_ns, received_at_ns)
        return True

    def _on_gap(self, gap: Gap, event_time_ns: int | None, received_at_ns: int) -> None:
        self._counters.gaps += 1
        self._counters.missing += gap.count
        self._span_missing += gap.count
        if event_time_ns is not None:
            self._note_time(event_time_ns)
        detail = {"from_sequence": gap.from_sequence, "to_sequence": gap.to_sequence, "count": gap.count}
        self.publish_event("gap", detail, received_at_ns)

    def _note_time(self, event_time_ns: int) -> None:
        if self.event_time_ns is None:
            self.first_event_time_ns = self.event_time_ns = event_time_ns
        elif event_time_ns > self.event_time_ns:
            self.event_time_ns = event_time_ns
        if event_time_ns > self._counters.last_event_time_ns:
            self._counters.last_event_time_ns = event_time_ns

    def _note_unknown(self, channel: str, at_ns: int) -> str:
        """Count a frame of a channel unknown to us; returns the name it is counted under."""
        name = count_bounded(self._counters.unknown_channels, channel)
        if name not in self._reported:
            self._reported.add(name)
            self._drift({"unknown_channel": channel}, at_ns)
        return name

    def _note_drift(self, found: tuple[str, ...], sequence_num: int, at_ns: int) -> None:
        """Count differences from the documented protocol; publish each kind once per connection."""
        for finding in found:
            name = count_bounded(self._counters.drift, finding)
            self._span_drift[name] += 1
            if name not in self._reported:
                self._reported.add(name)
                self._drift({"drift": finding, "sequence_num": sequence_num}, at_ns)

    def _publish_subscriptions(self, frame: wire.Frame, at_ns: int) -> None:
        for event in frame.events:
            if isinstance(event, wire.SubscriptionsEvent):
                self.publish_event("subscribed", {"subscriptions": event.subscriptions}, at_ns)

    def _publish_entries(self, frame: wire.Frame, received_at_ns: int, check_bounds: bool) -> bool:
        """Publish every entry that can be read; returns whether one was."""
        published = False
        channel, sequence_num = frame.channel, frame.sequence_num
        for event_index, event in enumerate(frame.events):
            entries: list[msgspec.Raw] = event.tickers if channel == wire.TICKER else event.trades  # pyright: ignore[reportAttributeAccessIssue] - the parser gives a channel its events
            for entry_index, entry in enumerate(entries):
                try:
                    product_id, drift = read_entry(channel, entry)
                    if check_bounds:
                        check_entry_bounds(entry, event_index, entry_index)
                except FrameError as error:
                    reason = entry_reason(channel, event_index, entry_index, error.reason)
                    self._dead(reason, bytes(entry), received_at_ns, sequence_num)
                    continue
                if drift:
                    self._note_drift(drift, sequence_num, received_at_ns)
                event_type: str = event.type  # pyright: ignore[reportAttributeAccessIssue]
                self._publish_entry(
                    frame, event_type, product_id, event_index, entry_index, entry, received_at_ns
                )
                published = True
        return published

    def _publish_entry(
        self,
        frame: wire.Frame,
        event_type: str,
        product_id: str,
        event_index: int,
        entry_index: int,
        entry: msgspec.Raw,
        received_at_ns: int,
    ) -> None:
        # The shared fields are written twice: handing over the one that differs as `**{name: entry}` doubles
        # what building and encoding a message costs (1.0 against 2.1 µs), and every entry passes here.
        is_tick = frame.channel == wire.TICKER
        if is_tick:
            message = TickMessage(
                product_id=product_id,
                event_time_ns=frame.event_time_ns,
                received_at_ns=received_at_ns,
                connection_id=self.connection_id,
                sequence_num=frame.sequence_num,
                event_index=event_index,
                entry_index=entry_index,
                event_type=event_type,
                ticker=entry,
            )
        else:
            message = TradeMessage(
                product_id=product_id,
                event_time_ns=frame.event_time_ns,
                received_at_ns=received_at_ns,
                connection_id=self.connection_id,
                sequence_num=frame.sequence_num,
                event_index=event_index,
                entry_index=entry_index,
                event_type=event_type,
                trade=entry,
            )
        topic = envelope.TICKS if is_tick else envelope.TRADES
        self._outlet.publish(topic, product_id.encode(), envelope.encode(message))
        if is_tick:
            self._counters.ticks += 1
        else:
            self._counters.trades += 1

    def _dead(self, reason: str, data: bytes, at_ns: int, sequence_num: int | None) -> None:
        if len(data) > _MAX_DEAD_BYTES:
            reason = cut_reason(reason, _MAX_DEAD_BYTES, len(data))
        letter = DeadLetter(
            reason=reason,
            at_ns=at_ns,
            connection_id=self.connection_id,
            sequence_num=sequence_num,
            data_base64=base64.b64encode(data[:_MAX_DEAD_BYTES]).decode(),
        )
        self._outlet.publish(envelope.DEAD, self._key, envelope.encode(letter))
        self._counters.dead_letters += 1
        count_bounded(self._counters.dead_reasons, reason_class(reason))

    def _report_skew(self, ahead_ns: int, received_at_ns: int) -> None:
        if not self._skew_reported:
            self._skew_reported = True
            LOG.warning(
                "the exchange is %.1f s ahead of this machine's clock; frames over %g s are dead letters",
                ahead_ns / 1e9,
                self._future_limit_ns / 1e9,
            )
            self.publish_event("clock_skew", {"exchange_ahead_ms": ahead_ns // NS_PER_MS}, received_at_ns)

    def _drift(self, detail: dict[str, Any], at_ns: int) -> None:
        # A server that only sends errors must not fill feed.events.
        self._drift_events += 1
        if self._drift_events <= _MAX_DRIFT_EVENTS:
            LOG.warning("the exchange sent a message that its protocol does not document: %s", detail)
            self.publish_event("protocol_drift", detail, at_ns)


def check_entry_bounds(entry: msgspec.Raw, event_index: int, entry_index: int) -> None:
    """Raise an error for an entry that does not fit into a message or raw storage.

    Raises:
        FrameError: too many bytes, or an index beyond the range of raw storage.
    """
    size = len(memoryview(entry))
    if size > _MAX_ENTRY_BYTES:
        raise FrameError(f"{size} bytes are more than a message holds")
    if event_index > _MAX_INDEX or entry_index > _MAX_INDEX:
        raise FrameError("more entries than raw storage numbers")
