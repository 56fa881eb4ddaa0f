"""Whatever bytes come, in whatever order, under whatever clock: no crash, and everything is accounted for."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection

from cryptovol_dagster_tests.ingestor.feed.json_mutations import (
    NO_FRAME,
    changed_bytes,
    changed_json,
    every_odd_frame,
)
from cryptovol_dagster_tests.ingestor.feed.support import (
    NS,
    QUICK,
    T0_NS,
    RememberingPublisher,
    entry,
    frame,
    scripted_server,
    trade,
)
from ingestor.archive.schema import to_batch
from ingestor.envelope import DEAD, EVENTS, TICKS, TRADES, encode
from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.exchange.reasons import entry_place
from ingestor.feed.connection import Connection, SequenceBrokenError
from ingestor.feed.counters import FeedCounters
from ingestor.feed.feed import Feed

FUTURE_LIMIT_NS = 300 * NS
HOUR_NS = 3_600 * NS
_CUT_BYTES = 600_000

#: One of each channel, of several entries where there may be several.
BASES: list[dict[str, Any]] = [
    json.loads(text)
    for text in (
        frame(0),
        frame(0, events=[{"type": "snapshot", "tickers": [entry(), entry("ETH-USD")]}] * 2),
        frame(0, "market_trades", events=[{"type": "update", "trades": [trade(), trade("BTC-USD", "2")]}]),
        frame(0, "heartbeats"),
        frame(0, "subscriptions"),
        frame(0, "l2_data", events=[{"type": "update", "product_id": "BTC-USD", "updates": []}]),
        frame(0, "candles", events=[{"type": "update", "candles": []}]),
        frame(0, "status", events=[{"status": "fine"}]),
        '{"type":"error","message":"slow down"}',
    )
]


@dataclass(frozen=True)
class Received:
    data: bytes
    received_at_ns: int


@st.composite
def received(draw: st.DrawFn, bases: list[dict[str, Any]]) -> list[Received]:
    """A connection's frames: mostly in order, mostly well-formed, under a clock that steps now and then."""
    number, clock_error_ns, frames = -1, 0, []
    for _ in range(draw(st.integers(1, 20))):
        number = max(0, number + draw(st.sampled_from([1, 1, 1, 1, 1, 1, 0, -3, 4])))
        content = dict(draw(st.sampled_from(bases)))
        time_ns = T0_NS + number * NS // 10
        if "channel" in content:
            content |= {"sequence_num": number, "timestamp": ns_to_rfc3339(time_ns)}
        clock_error_ns = draw(st.sampled_from([clock_error_ns] * 9 + [0, 5 * HOUR_NS, -5 * HOUR_NS, -2 * NS]))
        data = draw(
            st.just(json.dumps(content).encode())
            | changed_json(content)
            | changed_json(content)
            | changed_bytes(content)
            | st.sampled_from(NO_FRAME)
        )
        frames.append(Received(data, time_ns + clock_error_ns))
    return frames


class Watched:
    """A connection of which each frame's fate is looked at."""

    def __init__(self) -> None:
        self.out = RememberingPublisher()
        self.counters = FeedCounters()
        self.connection = Connection("c0ffee", self.out, self.counters, FUTURE_LIMIT_NS)
        self.fates: Counter[str] = Counter()

    def take(self, frame: Received) -> None:
        before, repeats, errors = len(self.out.messages), self.counters.repeats, self.counters.errors
        channel = self.connection.on_frame(frame.data, frame.received_at_ns)
        published, letters = 0, []
        for topic, _, message in self.out.messages[before:]:
            if topic == DEAD:
                letters.append(message)
            elif topic != EVENTS:
                published += 1
                assert bytes(message.ticker if topic == TICKS else message.trade) in frame.data
        whole = [letter for letter in letters if entry_place(letter.reason) is None]
        for letter in letters:
            kept = base64.b64decode(letter.data_base64)
            assert kept == frame.data[:_CUT_BYTES] if letter in whole else kept in frame.data
            assert letter.reason.isprintable()
        fates = {
            "published": published > 0,
            "dead": len(whole) == 1,
            "repeat": self.counters.repeats > repeats,
            "error": self.counters.errors > errors,
        }
        assert len(whole) <= 1
        assert sum(fates.values()) <= 1, fates
        fate = next((name for name, is_so in fates.items() if is_so), "control")
        assert channel is not None or fate in ("dead", "repeat")
        self.fates[fate] += 1

    def is_accounted_for(self) -> None:
        """Check the contract of checkpoints and of what is published, over the whole connection."""
        details = [event.detail for event in self.out.events("checkpoint")]
        begin, drift = 0, Counter[str]()
        for detail in details:
            assert detail["from_sequence"] == begin
            begin = detail["to_sequence"] + 1
            accounted = sum(detail["frames"].values()) + detail["dead_frames"] + detail["missing"]
            assert accounted == begin - detail["from_sequence"]
            drift.update(detail.get("drift", {}))
            assert detail.get("drift") != {}
        assert begin == self.connection.last_sequence + 1
        assert drift == self.counters.drift

        stored = {message.sequence_num for topic in (TICKS, TRADES) for message in self.out.of(topic)}
        carried = sum(d["frames"].get("ticker", 0) + d["frames"].get("market_trades", 0) for d in details)
        assert len(stored) == carried - sum(detail["empty_frames"] for detail in details)
        assert len(stored) == self.fates["published"]
        numbered = sum(letter.sequence_num is not None for letter in self.whole_letters)
        assert numbered == sum(detail["dead_frames"] for detail in details)
        assert len(self.whole_letters) == self.fates["dead"]
        assert len(self.out.dead) == self.counters.dead_letters == sum(self.counters.dead_reasons.values())
        gaps = sum(event.detail["count"] for event in self.out.events("gap"))
        assert gaps == sum(detail["missing"] for detail in details) == self.counters.missing
        assert self.fates["repeat"] == sum(d["repeats"] for d in details) + self.connection._span_repeats
        assert self.fates.total() == self.counters.frames
        encode(self.counters.as_dict())

    @property
    def whole_letters(self) -> list[Any]:
        return [letter for letter in self.out.dead if entry_place(letter.reason) is None]

    def is_stored_readably(self) -> None:
        """Every message fits a broker, and raw storage reads each in its place."""
        assert all(len(value) < 1_000_000 for value in self.out.raw)
        for topic in (TICKS, TRADES, EVENTS, DEAD):
            values = [
                raw
                for (name, _, _), raw in zip(self.out.messages, self.out.raw, strict=True)
                if name == topic
            ]
            if not values:
                continue
            batch = to_batch(topic, 0, 0, values, lambda index: T0_NS, None)
            assert set(batch.column("schema_version").to_pylist()) == {1}
            if topic in (TICKS, TRADES):
                numbers = [message.sequence_num for message in self.out.of(topic)]
                assert batch.column("sequence_num").to_pylist() == numbers


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def judge(frames: list[Received], checkpoint_after: set[int]) -> Watched:
    watched = Watched()
    for index, each in enumerate(frames):
        try:
            watched.take(each)
        except SequenceBrokenError:
            break
        if index in checkpoint_after:
            watched.connection.checkpoint()
    watched.connection.checkpoint()
    watched.is_accounted_for()
    watched.is_stored_readably()
    return watched


CHECKPOINTS = st.sets(st.integers(0, 20), max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(received(BASES), CHECKPOINTS)
def test_any_mixture_is_accounted_for(frames: list[Received], checkpoint_after: set[int]) -> None:
    judge(frames, checkpoint_after)


def real_frames(recordings: Path) -> list[dict[str, Any]]:
    """A few real frames of every channel, the short ones: a snapshot of the book is 2 MB."""
    found: dict[str, list[dict[str, Any]]] = {}
    with gzip.open(recordings / "multichannel_2026-08-09_25s_session.jsonl.gz", "rt") as lines:
        for line in lines:
            record = json.loads(line)
            if record["t"] == "recv" and len(record["data"]) < 2_000:
                content = json.loads(record["data"])
                found.setdefault(content["channel"], []).append(content)
    assert len(found) == 6
    return [content for frames in found.values() for content in frames[:3]]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_mixture_of_real_frames_is_accounted_for(recordings: Path, data: st.DataObject) -> None:
    global _REAL
    _REAL = _REAL or real_frames(recordings)
    judge(data.draw(received(_REAL)), data.draw(CHECKPOINTS))


_REAL: list[dict[str, Any]] = []


@pytest.mark.parametrize("channel", ["ticker", "market_trades"])
def test_every_odd_value_in_every_place_of_a_frame(channel: str) -> None:
    """No value anywhere makes a frame vanish, or an entry that raw storage cannot read."""
    fates: Counter[str] = Counter()
    for data in every_odd_frame(json.loads(frame(0, channel))):
        watched = judge([Received(data, T0_NS)], set())
        assert watched.fates.total() == 1
        fates += watched.fates
    assert min(fates["published"], fates["dead"], fates["control"]) > 10, fates


async def test_the_same_through_a_socket() -> None:
    """A server that sends nonsense between good frames loses nothing of the good ones, over reconnects."""
    odd = [*every_odd_frame(json.loads(frame(0)), sequence=False), *NO_FRAME] * 2
    numbered = [each.replace(b'"sequence_num":0', b'"sequence_num":%d' % n) for n, each in enumerate(odd)]
    halves = numbered[: len(odd) // 2], numbered[len(odd) // 2 :]

    async def script(socket: ServerConnection, number: int) -> None:
        for each in halves[number] if number < 2 else []:
            # Text that is not UTF-8 is no WebSocket text.
            await socket.send(each, text=is_utf8(each))
        await socket.send(frame(len(odd)))
        await socket.close(1001 if number == 0 else 1000)

    publisher = RememberingPublisher()
    async with scripted_server(script) as (url, _):
        feed = Feed(url, ("ticker",), ("BTC-USD",), QUICK, publisher, until_closed=True)  # type: ignore[arg-type]
        await feed.run(asyncio.Event())
    counters = feed.counters
    assert counters.frames == len(odd) + 2
    sent = set(odd) | set(numbered)
    whole = [letter for letter in publisher.dead if entry_place(letter.reason) is None]
    assert {base64.b64decode(letter.data_base64) for letter in whole} <= sent
    ends = publisher.events("disconnected")
    assert [end.detail["frames"] for end in ends] == [len(halves[0]) + 1, len(halves[1]) + 1]
    for end in ends:
        details = [
            event.detail
            for event in publisher.events("checkpoint")
            if event.connection_id == end.connection_id
        ]
        accounted = sum(sum(d["frames"].values()) + d["dead_frames"] + d["missing"] for d in details)
        assert accounted == end.detail["last_sequence"] + 1 == len(odd) + 1
        own = [tick for tick in publisher.ticks if tick.connection_id == end.connection_id]
        empty = sum(d["empty_frames"] for d in details)
        tickers = sum(d["frames"].get("ticker", 0) for d in details)
        assert len({tick.sequence_num for tick in own}) == tickers - empty
    assert sum(counters.drift.values()) == sum(
        sum(event.detail.get("drift", {}).values()) for event in publisher.events("checkpoint")
    )
