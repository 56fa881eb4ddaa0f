"""The simulator on a real socket."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cryptovol_dagster_tests.ingestor.simulator.test_playback import (
    ALL,
    NS,
    PRODUCTS,
    START_NS,
    follow,
    play,
    subscribe,
    synthetic,
)
from ingestor.exchange.clock import rfc3339_to_ns
from ingestor.simulator import server
from ingestor.simulator.playback import Playback
from ingestor.simulator.recorded import RecordedMarket
from ingestor.simulator.server import Simulator, SimulatorError


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_SETTLE_S", 0.1)
    monkeypatch.setattr(server, "_SUBSCRIBE_TIMEOUT_S", 0.4)


@asynccontextmanager
async def serving(
    playback: Playback, speed: float = math.inf
) -> AsyncIterator[tuple[str, Simulator, list[tuple[str, dict[str, Any]]]]]:
    events: list[tuple[str, dict[str, Any]]] = []
    simulator = Simulator(playback, speed, lambda name, detail: events.append((name, detail)))
    url = await simulator.start()
    try:
        yield url, simulator, events
    finally:
        await simulator.stop()


async def subscribed(url: str, *channels: str) -> ClientConnection:
    # Without a bound: a client that closes while its queue is full waits for its time limit.
    socket = await connect(url, compression=None, proxy=None, max_queue=None)
    for channel in channels or ALL:
        await socket.send(subscribe(channel, *PRODUCTS))
    return socket


async def listen(socket: ClientConnection) -> tuple[list[bytes], int]:
    """Everything until the end, and the close code (1006 without one)."""
    frames: list[bytes] = []
    try:
        while True:
            frames.append(await socket.recv(decode=False))
    except ConnectionClosed as closed:
        return frames, closed.rcvd.code if closed.rcvd else 1006


async def test_the_whole_market_arrives_byte_for_byte_and_ends_with_1000() -> None:
    line, greeting = follow(synthetic(), *ALL)
    expected = greeting + play(line)[0]
    playback = synthetic()
    async with serving(playback) as (url, simulator, events):
        socket = await subscribed(url)
        assert socket.response is not None
        assert socket.response.headers["X-Simulated"] == "true"
        frames, code = await listen(socket)
        assert code == 1000
        assert frames == expected
        await asyncio.wait_for(simulator.played.wait(), 5)
    assert sum(playback.sent.frames.values()) == len(frames)
    assert [name for name, _ in events] == ["connected", "closing"]


async def test_every_fault_is_seen_on_the_socket() -> None:
    playback = synthetic(
        faults="gap@20s:4; repeat@40s; disconnect@60s:1006; disconnect@90s:1001; silence@120s:0.3s"
    )
    connections: list[list[dict[str, Any]]] = []
    codes: list[int] = []
    async with serving(playback) as (url, simulator, events):
        while not simulator.played.is_set():
            frames, code = await listen(await subscribed(url))
            connections.append([json.loads(frame) for frame in frames])
            codes.append(code)
            if code == 1000:
                await asyncio.wait_for(simulator.played.wait(), 5)
    assert codes == [1006, 1001, 1000]
    numbers = [[frame["sequence_num"] for frame in frames] for frames in connections]
    steps = [Counter(b - a for a, b in pairwise(of)) for of in numbers]
    assert steps[0] == {1: len(numbers[0]) - 3, 5: 1, 0: 1}
    assert all(of[0] == 0 and set(step) == {1} for of, step in zip(numbers[1:], steps[1:], strict=True))
    assert all(frames[0]["events"][0]["type"] == "snapshot" for frames in connections)
    seconds = [(rfc3339_to_ns(frames[-1]["timestamp"]) - START_NS) / NS for frames in connections]
    assert [round(second) for second in seconds] == [60, 90, 180]
    assert "silence" in [name for name, _ in events]
    assert sum(map(len, numbers)) == sum(playback.sent.frames.values())


async def test_speed_paces_by_the_market_clock() -> None:
    async with serving(synthetic(), speed=60) as (url, _, _):
        loop = asyncio.get_running_loop()
        # The market moves from the subscription on. Read before it: what this side is late in reading would
        # make the market look ahead.
        began_s = loop.time()
        socket = await subscribed(url)
        while loop.time() < began_s + 0.5:
            frame = json.loads(await socket.recv())
        passed_s = (rfc3339_to_ns(frame["timestamp"]) - START_NS) / NS
        # Never ahead of the market's clock; a busy machine may lag behind it.
        assert 0 < passed_s <= 60 * (loop.time() - began_s)
        await socket.close()


async def test_a_client_that_leaves_finds_the_market_where_it_was() -> None:
    async with serving(synthetic(hours=0.2), speed=200) as (url, _, _):
        socket = await subscribed(url)
        last_ns = 0
        for _ in range(400):
            last_ns = rfc3339_to_ns(json.loads(await socket.recv())["timestamp"])
        await socket.close()
        socket = await subscribed(url)
        frame = json.loads(await socket.recv())
        assert frame["sequence_num"] == 0
        assert frame["events"][0]["type"] == "snapshot"
        assert rfc3339_to_ns(frame["timestamp"]) >= last_ns
        await socket.close()


async def test_a_client_that_leaves_during_a_silence_misses_nothing_else() -> None:
    playback = synthetic(faults="silence@60s:30s")
    async with serving(playback) as (url, _, events):
        socket = await subscribed(url)
        while "silence" not in [name for name, _ in events]:
            await socket.recv()
        await socket.close()
        frames, code = await listen(await subscribed(url))
    assert code == 1000
    whole, _, _ = play(follow(synthetic(faults="silence@60s:30s"), *ALL)[0])
    quotes = [frame for frame in map(json.loads, whole) if frame["channel"] == "ticker"]
    after = [frame for frame in quotes if rfc3339_to_ns(frame["timestamp"]) >= START_NS + 90 * NS]
    heard = [frame for frame in map(json.loads, frames) if frame["channel"] == "ticker"]
    assert [frame["events"] for frame in heard[len(PRODUCTS) :]] == [frame["events"] for frame in after]
    assert [name for name, _ in events] == ["connected", "silence", "client_gone", "connected", "closing"]


async def test_a_new_client_takes_the_market_over() -> None:
    async with serving(synthetic(), speed=1) as (url, _, _):
        old = await subscribed(url)
        await old.recv()
        await asyncio.sleep(0.3)
        new = await subscribed(url)
        _, code = await asyncio.wait_for(listen(old), 5)
        assert code == 1006
        assert json.loads(await new.recv())["sequence_num"] == 0
        await new.close()


async def test_the_market_begins_again_for_the_next_client() -> None:
    async with serving(synthetic(hours=0.01)) as (url, _, _):
        first = await listen(await subscribed(url))
        assert await listen(await subscribed(url)) == first


async def test_a_silent_client_is_disconnected() -> None:
    async with serving(synthetic()) as (url, _, events), connect(url, proxy=None) as socket:
        assert await asyncio.wait_for(listen(socket), 5) == ([], 1008)
        assert events == []


async def test_a_wrong_channel_is_refused_and_then_still_disconnected() -> None:
    async with serving(synthetic()) as (url, _, _), connect(url, proxy=None) as socket:
        await socket.send(subscribe("trades", "BTC-USD"))
        assert json.loads(await socket.recv()) == {"type": "error", "message": "authentication failure"}
        assert (await asyncio.wait_for(listen(socket), 5))[1] == 1008


async def test_a_subscription_in_mid_stream_is_acked_in_sequence() -> None:
    async with serving(synthetic(), speed=20) as (url, _, _):
        socket = await subscribed(url, "heartbeats")
        numbers = [json.loads(await socket.recv())["sequence_num"] for _ in range(3)]
        await socket.send(subscribe("ticker", "BTC-USD"))
        channels = []
        while channels.count("ticker") < 3:
            frame = json.loads(await socket.recv())
            numbers.append(frame["sequence_num"])
            channels.append(frame["channel"])
        assert numbers == list(range(len(numbers)))
        assert channels.index("ticker") == channels.index("subscriptions") - 1
        await socket.close()


async def test_a_slow_reader_still_gets_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    playback = synthetic(hours=0.5)
    async with serving(playback) as (url, _, _):
        socket = await connect(url, compression=None, proxy=None, max_queue=4)
        for channel in ALL:
            await socket.send(subscribe(channel, *PRODUCTS))
        await asyncio.sleep(0.8)
        frames, code = await listen(socket)
    assert code == 1000
    assert len(frames) == sum(playback.sent.frames.values()) > 15_000


async def test_a_recording_of_two_connections_closes_with_1001_between_them(tmp_path: Path) -> None:
    def line(number: int, second: int) -> str:
        entry = {"type": "ticker", "product_id": "BTC-USD", "best_bid": "1", "best_ask": "2"}
        return json.dumps(
            {
                "channel": "ticker",
                "timestamp": f"2026-04-04T03:00:{second:02d}Z",
                "sequence_num": number,
                "events": [{"type": "update", "tickers": [entry]}],
            }
        )

    path = tmp_path / "two.ndjson"
    path.write_text("\n".join([line(0, 0), line(1, 1), line(0, 30), line(1, 31), line(2, 32)]))
    async with serving(Playback(RecordedMarket([path]).segments)) as (url, _, _):
        first, first_code = await listen(await subscribed(url))
        second, second_code = await listen(await subscribed(url))
    assert (first_code, second_code) == (1001, 1000)
    assert [
        sum(json.loads(frame)["channel"] == "ticker" for frame in frames) for frames in (first, second)
    ] == [2, 3]


async def test_refused_handshakes_are_told_how_long_to_wait() -> None:
    playback = synthetic(hours=0.01, faults="refuse@0s:429:2")
    async with serving(playback) as (url, simulator, events):
        for _ in range(2):
            with pytest.raises(InvalidStatus) as refused:
                await subscribed(url)
            assert refused.value.response.status_code == 429
            assert refused.value.response.headers["Retry-After"] == "1"
        assert (await listen(await subscribed(url)))[1] == 1000
        await asyncio.wait_for(simulator.played.wait(), 5)
    assert [name for name, _ in events] == ["refused", "refused", "connected", "closing"]
    assert playback.sent.refused_handshakes == 2


async def test_a_frame_that_is_not_utf8_and_a_giant_pass_the_socket() -> None:
    faults = "malformed@5s:not_utf8; giant@10s:2000000"
    expected = play(follow(synthetic(hours=0.01, faults=faults), *ALL)[0])[0]
    async with serving(synthetic(hours=0.01, faults=faults)) as (url, _, _):
        socket = await connect(url, compression=None, proxy=None, max_queue=None, max_size=2_000_000)
        for channel in ALL:
            await socket.send(subscribe(channel, *PRODUCTS))
        frames, code = await listen(socket)
    assert code == 1000
    assert frames[-len(expected) :] == expected
    assert max(map(len, frames)) == 2_000_000


async def test_a_taken_port_is_one_clear_line() -> None:
    async with serving(synthetic()) as (url, _, _):
        port = int(url.rpartition(":")[2])
        second = Simulator(synthetic(), math.inf, lambda *_: None)
        with pytest.raises(SimulatorError, match=f"cannot listen on 127.0.0.1:{port}"):
            await second.start(port)


async def test_stopping_cuts_who_still_listens() -> None:
    playback = synthetic()
    async with serving(playback, speed=1) as (url, simulator, _):
        socket = await subscribed(url)
        await socket.recv()
        ending = asyncio.create_task(listen(socket))
        await asyncio.wait_for(simulator.stop(), 5)
        assert (await asyncio.wait_for(ending, 5))[1] == 1006
