"""The market's clock and its connections; pure, so that a socket and a file get the same frames.

A `Playback` is a position in the market. A `Line` is one connection to it: its subscriptions and its sequence
number. The market continues where the last line ended.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.exchange.messages import (
    BOOK,
    CANDLES,
    HEARTBEATS,
    SUBSCRIPTIONS,
    TICKER,
    TRADES,
)
from ingestor.simulator import damage
from ingestor.simulator.faults import (
    RENUMBERING,
    Damage,
    Disconnect,
    Drift,
    Fault,
    Gap,
    Giant,
    LateAck,
    Malformed,
    NoHeartbeats,
    Refuse,
    Repeat,
    Silence,
    Skew,
    UnknownChannel,
)
from ingestor.simulator.frames import MarketFrame, Segment, frame_head, own_frame
from ingestor.times import NS

NORMAL, GOING_AWAY = 1000, 1001
#: Channel of a subscription → channel of its frames.
CHANNEL_OF_SUBSCRIPTION = {
    "ticker": TICKER,
    "heartbeats": HEARTBEATS,
    "market_trades": TRADES,
    "level2": BOOK,
    "candles": CANDLES,
}
#: The exchange's own answer to a channel it does not know.
AUTHENTICATION_FAILURE = b'{"type":"error","message":"authentication failure"}'
UNREADABLE = b'{"type":"error","message":"failed to parse message"}'
_SNAPSHOT_CHANNELS = (TICKER, TRADES)
#: Where a class's name is cut into words.
_NAME_OF_FAULT = re.compile(r"(?<=[a-z])(?=[A-Z])")
_UPDATE = re.compile(rb'"type"\s*:\s*"update"')


class _ClientMessage(msgspec.Struct):
    type: str
    channel: str
    product_ids: list[str] = []


_decode_client_message = msgspec.json.Decoder(_ClientMessage).decode


@dataclass
class Sent:
    """Counts of sent frames over all connections, which a client's counts are compared with.

    Attributes:
        frames: Frames sent, by channel; repeats included, malformed ones left out.
        ticks: Ticker entries sent; those of repeats and malformed frames left out.
        dropped_frames: Frames numbered but not sent (gaps).
        dropped_ticks: Ticker entries in them.
        repeated_frames: Frames sent a second time.
        malformed_frames: Frames numbered and sent, but spoilt.
        malformed_ticks: Ticker entries that they would have had.
        skipped_frames: Frames of silences, neither numbered nor sent.
        connections: Connections that were played to.
        refused_handshakes: Handshakes answered with an HTTP status of refusal.
        faults: Executed faults, by kind.
    """

    frames: Counter[str] = field(default_factory=Counter)
    ticks: int = 0
    dropped_frames: int = 0
    dropped_ticks: int = 0
    repeated_frames: int = 0
    malformed_frames: int = 0
    malformed_ticks: int = 0
    skipped_frames: int = 0
    connections: int = 0
    refused_handshakes: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Return every count, for JSON."""
        return {**vars(self), "frames": dict(self.frames), "faults": dict(self.faults)}


@dataclass(frozen=True)
class Quiet:
    """Nothing is to be sent for so long, by the wall clock."""

    seconds: float


@dataclass(frozen=True)
class Close:
    """End of a connection; `finished` where the whole market has been played. Code 1006: cut it."""

    code: int
    finished: bool = False


@dataclass(frozen=True)
class Step:
    """Frames to send now, in order, and what to do after them (None: ask again)."""

    frames: list[bytes]
    then: Quiet | Close | None = None


class Playback:
    """A position in the market, shared by the connections that listen one after the other.

    Args:
        segments: Creates the segments; called each time the market is played.
        faults: Misfortunes, in order of time since the market's start.
    """

    def __init__(self, segments: Callable[[], Iterator[Segment]], faults: tuple[Fault, ...] = ()) -> None:
        self._make_segments = segments
        self._all_faults = faults
        self._skews = tuple(fault for fault in faults if isinstance(fault, Skew))
        self._late_acks = tuple(fault for fault in faults if isinstance(fault, LateAck))
        self._heart_stops = tuple(fault for fault in faults if isinstance(fault, NoHeartbeats))
        #: Whether the script excludes recorded connections with their own numbers.
        self.renumbers = any(isinstance(fault, RENUMBERING) for fault in faults)
        self.sent = Sent()
        self.finished = False
        self._begin()

    def _begin(self) -> None:
        self._segments = self._make_segments()
        self._faults = deque(self._all_faults)
        self._refusals: deque[int] = deque()
        self.finished = False
        self._enter(next(self._segments))
        self.start_ns = self._reached_ns = self.segment.start_ns

    def restart(self) -> None:
        """Play the market from its start again."""
        self._begin()

    def _enter(self, segment: Segment) -> None:
        self.segment = segment
        self.now_ns = segment.start_ns
        self._block: list[MarketFrame] = []
        self._index = 0
        #: Whether no frame of the segment has been taken yet.
        self.at_segment_start = True
        #: Newest frame of each (channel, product): the content of a snapshot.
        self.latest: dict[tuple[str, str], MarketFrame] = {}
        for frame in segment.opening:
            self._remember(frame)

    def peek(self) -> MarketFrame | None:
        """Return the segment's next frame; None at its end."""
        while self._index >= len(self._block):
            block = next(self.segment.blocks, None)
            if block is None:
                return None
            self._block, self._index = block, 0
        return self._block[self._index]

    def take(self) -> MarketFrame:
        """Advance by the frame of `peek`."""
        frame = self._block[self._index]
        self._index += 1
        self.at_segment_start = False
        self.now_ns = max(self.now_ns, frame.time_ns)
        self._remember(frame)
        return frame

    def end_segment(self) -> Close:
        """Advance to the next segment, or end the market."""
        segment = next(self._segments, None)
        if segment is None:
            self.finished = True
            return Close(NORMAL, finished=True)
        self._enter(segment)
        return Close(GOING_AWAY)

    def due_fault(self, time_ns: int) -> Fault | None:
        """Return the next fault, where its time has come."""
        self._reached_ns = max(self._reached_ns, time_ns)
        if self._faults and self.start_ns + self._faults[0].at_ns <= time_ns:
            return self._take(self._faults[0])
        return None

    def _take(self, fault: Fault) -> Fault:
        self._faults.remove(fault)
        self.sent.faults[_NAME_OF_FAULT.sub("_", type(fault).__name__).lower()] += 1
        if isinstance(fault, Refuse):
            self._refusals.extend([fault.status] * fault.handshakes)
        return fault

    def refuse_handshake(self) -> int | None:
        """Return the HTTP status of the refusal of the next handshake; None where it is accepted."""
        for fault in tuple(self._faults):
            # It applies to the next client, so it does not wait for a frame to be due.
            if isinstance(fault, Refuse) and self.start_ns + fault.at_ns <= self._reached_ns:
                self._take(fault)
        if not self._refusals:
            return None
        self.sent.refused_handshakes += 1
        return self._refusals.popleft()

    def ahead_ns(self, time_ns: int) -> int:
        """Return how far timestamps are ahead of the market at `time_ns`."""
        begun = [skew.ahead_ns for skew in self._skews if self.start_ns + skew.at_ns <= time_ns]
        return begun[-1] if begun else 0

    def heart_beats(self, time_ns: int) -> bool:
        """Return whether heartbeats are sent at `time_ns`."""
        since_ns = time_ns - self.start_ns
        return not any(stop.at_ns <= since_ns < stop.at_ns + stop.duration_ns for stop in self._heart_stops)

    @property
    def ack_delay_ns(self) -> int:
        """Return the delay of an acknowledgement requested now."""
        begun = [late.delay_ns for late in self._late_acks if self.start_ns + late.at_ns <= self.now_ns]
        return begun[-1] if begun else 0

    def skip_until(self, time_ns: int) -> None:
        """Skip the market to `time_ns` of this segment."""
        while (frame := self.peek()) is not None and frame.time_ns < time_ns:
            self.take()
            self.sent.skipped_frames += 1
        self.now_ns = max(self.now_ns, time_ns)

    def _remember(self, frame: MarketFrame) -> None:
        if frame.channel in _SNAPSHOT_CHANNELS:
            for product in frame.products:
                self.latest[frame.channel, product] = frame


class Line:
    """One connection to a market: subscriptions, numbers, heartbeats, and the faults that befall it.

    A recorded connection is sent with its own numbers where the client could not tell the difference: it
    starts at the recorded connection's beginning, has subscribed to all that was recorded, and the
    recording has its own acks and (where subscribed to) heartbeats. Otherwise frames are renumbered, this
    connection's acks replace recorded ones, and missing heartbeats are added, one per second. Trades are
    never invented.
    """

    def __init__(self, playback: Playback) -> None:
        self._playback = playback
        self._sent = playback.sent
        self._subscriptions: dict[str, dict[str, None]] = {}
        self._number = 0
        self._to_drop = 0
        self._to_repeat = 0
        self._to_drift = 0
        self._to_spoil: deque[Damage] = deque()
        self._verbatim = False
        self._next_heartbeat_ns: int | None = None
        self._unanswered = 0
        #: Delayed acknowledgements: time and events.
        self._late_acks: deque[tuple[int, bytes]] = deque()

    @property
    def subscribed(self) -> bool:
        """Return whether the client has a subscription."""
        return bool(self._subscriptions)

    def receive(self, message: str | bytes) -> list[bytes]:
        """Process a client's message.

        Returns:
            What to send at once: snapshots of what was subscribed to, then the ack with the full current
            set; or the exchange's error message.
        """
        try:
            asked = _decode_client_message(message)
        except msgspec.MsgspecError:
            return [UNREADABLE]
        known = asked.channel in CHANNEL_OF_SUBSCRIPTION and asked.type in ("subscribe", "unsubscribe")
        if not known:
            return [AUTHENTICATION_FAILURE]
        answer: list[bytes] = []
        if asked.type == "subscribe":
            self._subscribe(asked, answer)
        else:
            self._unsubscribe(asked)
        if self._may_be_verbatim():
            # The recording has its own acks, if the client requested its channels.
            self._unanswered += 1
        else:
            self._ack(answer)
        return answer

    def start(self) -> list[bytes]:
        """Begin to play: the client has subscribed.

        Returns:
            The first frames: an ack, where none was sent yet.
        """
        self._sent.connections += 1
        playback, answer = self._playback, []
        self._verbatim = self._may_be_verbatim() and self._wants_all_recorded()
        if self._unanswered and not self._verbatim:
            self._ack(answer)
        if not self._brings_heartbeats():
            since_start = (playback.now_ns - playback.segment.start_ns) % NS
            self._next_heartbeat_ns = playback.now_ns - since_start + NS
        return answer

    @property
    def next_due_ns(self) -> int | None:
        """Return the time of the next frame; None at the end of the segment."""
        frame = self._playback.peek()
        if frame is None:
            return None
        own_ns = self._own_frame_ns()
        return frame.time_ns if own_ns is None else min(frame.time_ns, own_ns)

    def advance(self, until_ns: int | None, most_frames: int) -> Step:
        """Advance the market.

        Args:
            until_ns: Up to this time of the market; None: as far as `most_frames` goes.
            most_frames: At most about so many frames.
        """
        playback = self._playback
        frames: list[bytes] = []
        while len(frames) < most_frames:
            frame = playback.peek()
            if frame is None:
                return Step(frames, playback.end_segment())
            own_ns = self._own_frame_ns()
            is_own = own_ns is not None and own_ns <= frame.time_ns
            time_ns = own_ns if is_own and own_ns is not None else frame.time_ns
            if until_ns is not None and time_ns > until_ns:
                break
            fault = playback.due_fault(time_ns)
            if fault is not None:
                then = self._befall(fault, time_ns, frames)
                if then is not None:
                    return Step(frames, then)
            elif is_own:
                self._send_own(time_ns, frames)
            else:
                playback.take()
                if self._wants(frame):
                    self._send(frame, frames)
        return Step(frames)

    def _befall(self, fault: Fault, time_ns: int, frames: list[bytes]) -> Quiet | Close | None:
        match fault:
            case Gap():
                self._to_drop += fault.frames
            case Repeat():
                self._to_repeat += 1
            case Malformed():
                self._to_spoil.append(fault.damage)
            case Drift():
                self._to_drift += 1
            case Giant():
                self._send(damage.giant(time_ns, fault.size_bytes, self._number), frames)
            case UnknownChannel():
                for _ in range(fault.frames):
                    self._send(damage.unheard_of(time_ns), frames)
            case Disconnect():
                return Close(fault.code)
            case Silence():
                until_ns = self._playback.start_ns + fault.at_ns + fault.duration_ns
                self._playback.skip_until(until_ns)
                if self._next_heartbeat_ns is not None:
                    missed = -((self._next_heartbeat_ns - until_ns) // NS)
                    self._next_heartbeat_ns += max(0, missed) * NS
                return Quiet(fault.duration_ns / NS)
        return None

    def _subscribe(self, asked: _ClientMessage, answer: list[bytes]) -> None:
        products = self._subscriptions.setdefault(asked.channel, {})
        if asked.channel == HEARTBEATS:
            products[HEARTBEATS] = None
            return
        for product in asked.product_ids:
            latest = self._playback.latest.get((CHANNEL_OF_SUBSCRIPTION[asked.channel], product))
            if product not in products and latest is not None:
                self._send(_snapshot(latest, self._playback.now_ns), answer)
            products[product] = None

    def _unsubscribe(self, asked: _ClientMessage) -> None:
        products = self._subscriptions.get(asked.channel, {})
        for product in asked.product_ids or tuple(products):
            products.pop(product, None)
        if not products:
            self._subscriptions.pop(asked.channel, None)

    def _ack(self, frames: list[bytes]) -> None:
        current = {channel: list(products) for channel, products in self._subscriptions.items()}
        events = msgspec.json.encode([{"subscriptions": current}])
        now_ns, delay_ns = self._playback.now_ns, self._playback.ack_delay_ns
        if delay_ns:
            self._late_acks.append((now_ns + delay_ns, events))
        else:
            self._send(own_frame(SUBSCRIPTIONS, now_ns, events), frames)

    def _send_own(self, time_ns: int, frames: list[bytes]) -> None:
        """Send the acknowledgement or the heartbeat that is due."""
        self._playback.now_ns = max(self._playback.now_ns, time_ns)
        if self._late_acks and self._late_acks[0][0] <= time_ns:
            _, events = self._late_acks.popleft()
            self._send(own_frame(SUBSCRIPTIONS, time_ns, events), frames)
            return
        self._next_heartbeat_ns = time_ns + NS
        if not self._playback.heart_beats(time_ns):
            return
        counter = (time_ns - self._playback.start_ns) // NS
        current_time = ns_to_rfc3339(time_ns).encode()
        events = b'[{"current_time":"%b","heartbeat_counter":%d}]' % (current_time, counter)
        self._send(own_frame(HEARTBEATS, time_ns, events), frames)

    def _own_frame_ns(self) -> int | None:
        """Return the time of the connection's next own frame: a heartbeat, or a late acknowledgement."""
        beat_ns = self._heartbeat_ns()
        if not self._late_acks:
            return beat_ns
        ack_ns = self._late_acks[0][0]
        return ack_ns if beat_ns is None else min(ack_ns, beat_ns)

    def _heartbeat_ns(self) -> int | None:
        return self._next_heartbeat_ns if HEARTBEATS in self._subscriptions else None

    def _send(self, frame: MarketFrame, frames: list[bytes]) -> None:
        number = frame.sequence_num if self._verbatim else self._number
        self._number += 1
        sent = self._sent
        if self._to_drop:
            self._to_drop -= 1
            sent.dropped_frames += 1
            sent.dropped_ticks += frame.ticks
            return
        if self._to_drift and frame.channel == TICKER and (drifted := damage.drifted(frame)) is not None:
            self._to_drift -= 1
            frame = drifted
        if ahead_ns := self._playback.ahead_ns(frame.time_ns):
            frame = damage.skewed(frame, ahead_ns)
        data = b"%b%d%b" % (frame.head, number, frame.tail)
        if self._to_spoil:
            frames.append(damage.spoilt(data, self._to_spoil.popleft()))
            sent.malformed_frames += 1
            sent.malformed_ticks += frame.ticks
            return
        frames.append(data)
        sent.frames[frame.channel] += 1
        sent.ticks += frame.ticks
        if self._to_repeat:
            self._to_repeat -= 1
            frames.append(data)
            sent.frames[frame.channel] += 1
            sent.repeated_frames += 1

    def _wants(self, frame: MarketFrame) -> bool:
        if self._verbatim:
            return True
        products = self._subscriptions.get(_SUBSCRIPTION_OF_CHANNEL.get(frame.channel, ""))
        if products is None:
            return False
        if frame.channel == HEARTBEATS and not self._playback.heart_beats(frame.time_ns):
            return False
        return not frame.products or not frame.products.isdisjoint(products)

    def _may_be_verbatim(self) -> bool:
        playback = self._playback
        untouched = not self._number and playback.at_segment_start
        if playback.renumbers or not untouched or SUBSCRIPTIONS not in playback.segment.recorded_channels:
            return False
        first = playback.peek()
        return first is not None and first.sequence_num == 0

    def _wants_all_recorded(self) -> bool:
        segment = self._playback.segment
        recorded = segment.recorded_channels - {SUBSCRIPTIONS}
        wanted = {CHANNEL_OF_SUBSCRIPTION[channel]: set(of) for channel, of in self._subscriptions.items()}
        return (
            recorded <= wanted.keys()
            and (HEARTBEATS not in wanted or HEARTBEATS in recorded)
            and all(segment.recorded_products <= wanted[channel] for channel in recorded - {HEARTBEATS})
        )

    def _brings_heartbeats(self) -> bool:
        return HEARTBEATS in self._playback.segment.recorded_channels


_SUBSCRIPTION_OF_CHANNEL = {channel: asked for asked, channel in CHANNEL_OF_SUBSCRIPTION.items()}


def _snapshot(frame: MarketFrame, now_ns: int) -> MarketFrame:
    """Return the newest frame as a snapshot, which the exchange sends to a new subscriber."""
    tail = _UPDATE.sub(rb'"type":"snapshot"', frame.tail, count=1)
    return frame._replace(time_ns=now_ns, head=frame_head(frame.channel, now_ns), tail=tail)
