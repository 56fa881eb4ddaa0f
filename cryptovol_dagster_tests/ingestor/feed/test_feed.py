"""The feed against a scripted server on a real socket: subscribing, reconnecting, liveness, giving up."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from cryptovol_dagster_tests.ingestor.feed.support import (
    NS,
    QUICK,
    RememberingPublisher,
    entry,
    frame,
    scripted_server,
    send,
)
from ingestor.feed.feed import Feed, FeedError

CHANNELS = ("ticker", "heartbeats", "market_trades")
PRODUCTS = ("BTC-USD", "ETH-USD")
ERROR = '{"type":"error","message":"authentication failure"}'


def make_feed(url: str, publisher: RememberingPublisher, **options: Any) -> Feed:
    settings = options.pop("settings", QUICK)
    channels = options.pop("channels", CHANNELS)
    products = options.pop("products", PRODUCTS)
    return Feed(url, channels, products, settings, publisher, rng=random.Random(3), **options)  # type: ignore[arg-type]


async def run_until(feed: Feed, done: Callable[[], bool], limit_s: float = 10.0) -> None:
    """Run the feed until `done`, then stop it cleanly."""
    stop = asyncio.Event()
    running = asyncio.create_task(feed.run(stop))
    deadline = time.monotonic() + limit_s
    while not done() and not running.done() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    reached = done()
    stop.set()
    await running
    assert reached, "did not come to that in time"


async def test_subscribes_to_each_channel_in_a_message_of_its_own() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await asyncio.sleep(0.1)
        await socket.close(1000)

    async with scripted_server(script) as (url, subscriptions):
        await make_feed(url, RememberingPublisher(), until_closed=True).run(asyncio.Event())
    assert subscriptions == [
        [
            {"type": "subscribe", "channel": "ticker", "product_ids": ["BTC-USD", "ETH-USD"]},
            {"type": "subscribe", "channel": "heartbeats"},
            {"type": "subscribe", "channel": "market_trades", "product_ids": ["BTC-USD", "ETH-USD"]},
        ]
    ]


async def test_many_products_go_in_messages_of_fifty() -> None:
    products = tuple(f"P{n}-USD" for n in range(60))

    async def script(socket: ServerConnection, number: int) -> None:
        await send(socket, frame(0), frame(1, "heartbeats"))
        await asyncio.sleep(0.35)
        await socket.close(1000)

    async with scripted_server(script) as (url, subscriptions):
        feed = make_feed(
            url,
            RememberingPublisher(),
            products=products,
            channels=("ticker", "heartbeats"),
            until_closed=True,
        )
        await feed.run(asyncio.Event())
    asked = [(m["channel"], len(m.get("product_ids", ()))) for m in subscriptions[0]]
    assert asked == [("ticker", 50), ("heartbeats", 0), ("ticker", 10)]


async def test_frames_are_read_while_many_products_are_subscribed_to() -> None:
    """Five messages of fifty take 1 s, longer than silence may last here."""
    products = tuple(f"P{n}-USD" for n in range(250))

    async def script(socket: ServerConnection, number: int) -> None:
        for sequence in range(13):
            await send(socket, frame(sequence, "heartbeats" if sequence % 3 else "ticker"))
            await asyncio.sleep(0.1)
        await socket.close(1000)

    async with scripted_server(script) as (url, subscriptions):
        publisher = RememberingPublisher()
        feed = make_feed(
            url, publisher, products=products, channels=("ticker", "heartbeats"), until_closed=True
        )
        await feed.run(asyncio.Event())
    assert feed.counters.connections == 1
    assert sum(len(message.get("product_ids", ())) for message in subscriptions[0]) == 250
    assert publisher.ticks[-1].received_at_ns - publisher.ticks[0].received_at_ns > NS


async def test_a_whole_recording_until_closed() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await send(socket, frame(0), frame(1, "subscriptions"), *(frame(n) for n in range(2, 2_000)))
        await socket.close(1000, "end of recording")

    publisher = RememberingPublisher()
    async with scripted_server(script) as (url, _):
        feed = make_feed(url, publisher, until_closed=True)
        await feed.run(asyncio.Event())
    assert [tick.sequence_num for tick in publisher.ticks] == [0, *range(2, 2_000)]
    assert [kind for kind in publisher.kinds if kind != "checkpoint"] == [
        "connected",
        "subscribed",
        "disconnected",
    ]
    assert publisher.kinds[-2:] == ["checkpoint", "disconnected"]
    assert publisher.events("checkpoint")[-1].detail["to_sequence"] == 1_999
    end = publisher.events("disconnected")[0].detail
    assert (end["reason"], end["close_code"], end["frames"], end["last_sequence"]) == (
        "server_closed",
        1000,
        2_000,
        1_999,
    )
    assert (feed.counters.frames, feed.counters.reconnects) == (2_000, 0)


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, None])
async def test_every_end_is_reconnected(code: int | None) -> None:
    """None: the line breaks without a close frame (1006)."""

    async def script(socket: ServerConnection, number: int) -> None:
        await send(socket, frame(3 * number), frame(3 * number + 1, "heartbeats"))
        if number < 2:
            if code is None:
                await asyncio.sleep(0.05)
                socket.transport.abort()
            else:
                await socket.close(code)
        else:
            await socket.wait_closed()

    publisher = RememberingPublisher()
    async with scripted_server(script) as (url, _):
        feed = make_feed(url, publisher)
        await run_until(feed, lambda: len(publisher.ticks) == 3)
    assert feed.counters.reconnects == 2
    assert len({tick.connection_id for tick in publisher.ticks}) == 3
    ends = [event.detail["close_code"] for event in publisher.events("disconnected")]
    assert ends == [code or 1006, code or 1006, None]
    # A new connection begins at 0 again: what the scripts left out there is a gap.
    assert [e.detail["count"] for e in publisher.events("gap")] == [3, 6]
    resumed = publisher.events("resumed")
    assert [event.detail["hole_ms"] for event in resumed] == [200, 200]
    assert resumed[0].detail["previous_connection_id"] == publisher.ticks[0].connection_id


async def test_until_closed_survives_what_is_no_clean_close() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await send(socket, frame(0))
        await socket.close(1001 if number == 0 else 1000)

    publisher = RememberingPublisher()
    async with scripted_server(script) as (url, _):
        await make_feed(url, publisher, until_closed=True).run(asyncio.Event())
    assert len(publisher.ticks) == 2


async def test_silence_is_noticed_told_and_reconnected() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await send(socket, frame(0))
        await socket.wait_closed()

    publisher = RememberingPublisher()
    async with scripted_server(script) as (url, _):
        await run_until(make_feed(url, publisher), lambda: len(publisher.ticks) == 2)
    assert publisher.events("stale")[0].detail["reason"] == "frame_silence"
    assert publisher.events("disconnected")[0].detail["reason"] == "frame_silence"
    first = publisher.ticks[0].connection_id
    assert [e.kind for e in publisher.events() if e.connection_id == first][-1] == "disconnected"


async def chatter(socket: ServerConnection, heartbeats: bool) -> None:
    number = 0
    while True:
        await send(socket, frame(number, "heartbeats" if heartbeats and number % 2 else "ticker"))
        number += 1
        await asyncio.sleep(0.05)


async def test_missing_heartbeats_are_noticed_beside_lively_ticks() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await chatter(socket, heartbeats=False)

    publisher = RememberingPublisher()
    async with scripted_server(script) as (url, _):
        await run_until(make_feed(url, publisher), lambda: bool(publisher.events("stale")))
        assert publisher.events("stale")[0].detail["reason"] == "heartbeat_silence"

        # Who never asked for heartbeats does not miss them.
        publisher = RememberingPublisher()
        started = time.monotonic()
        await run_until(
            make_feed(url, publisher, channels=("ticker",)),
            lambda: time.monotonic() - started > 2 * QUICK.heartbeat_silence_s,
        )
        assert publisher.events("stale") == []


async def test_a_quiet_market_with_heartbeats_stays_connected() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await chatter(socket, heartbeats=True)

    publisher = RememberingPublisher()
    async with scripted_server(script) as (url, _):
        started = time.monotonic()
        feed = make_feed(url, publisher)
        await run_until(feed, lambda: time.monotonic() - started > 2 * QUICK.heartbeat_silence_s)
    assert (feed.counters.connections, publisher.events("stale")) == (1, [])


async def test_heartbeats_of_another_shape_are_signs_of_life_and_drift() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        for n in range(10_000):
            await send(socket, frame(n, "heartbeats", events=[{"heartbeat_counter": [n], "beat": 1}]))
            await asyncio.sleep(0.05)

    publisher = RememberingPublisher()
    async with scripted_server(script) as (url, _):
        started = time.monotonic()
        feed = make_feed(url, publisher)
        await run_until(feed, lambda: time.monotonic() - started > 2 * QUICK.heartbeat_silence_s)
    assert (feed.counters.connections, publisher.dead, publisher.events("stale")) == (1, [], [])
    assert set(feed.counters.drift) == {
        "heartbeats: unknown field 'beat' of the event",
        "heartbeats: missing field 'current_time' of the event",
        "heartbeats: field 'heartbeat_counter' of the event is an array, not a number or text",
    }
    assert len(publisher.events("protocol_drift")) == 3


async def test_a_server_that_closes_with_escapes_prints_none() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await send(socket, frame(0))
        await socket.close(1001, "\x1b[2J\nbye")

    publisher = RememberingPublisher()
    async with scripted_server(script) as (url, _):
        await run_until(make_feed(url, publisher), lambda: bool(publisher.events("disconnected")))
    assert publisher.events("disconnected")[0].detail["detail"].endswith(r"code 1001: \x1b[2J\nbye")


async def test_the_socket_is_not_read_while_there_is_no_room() -> None:
    sent = 0

    async def script(socket: ServerConnection, number: int) -> None:
        nonlocal sent
        for n in range(100_000):
            await socket.send(
                frame(n, events=[{"type": "update", "tickers": [entry() | {"pad": "x" * 2_000}]}])
            )
            sent = n + 1

    publisher = RememberingPublisher()
    settings = QUICK.model_copy(update={"max_queue_frames": 16})
    async with scripted_server(script) as (url, _):
        stop = asyncio.Event()
        feed = make_feed(url, publisher, settings=settings, channels=("ticker",))
        running = asyncio.create_task(feed.run(stop))
        while len(publisher.ticks) < 10:
            await asyncio.sleep(0.01)
        publisher.blocked = True
        await asyncio.sleep(0.1)
        taken = len(publisher.ticks)
        # Longer than any silence is allowed to last: waiting for room is not the server's fault.
        await asyncio.sleep(2 * QUICK.frame_silence_s)
        assert len(publisher.ticks) == taken
        assert sent < 20_000
        publisher.blocked = False
        while len(publisher.ticks) < taken + 1_000:
            await asyncio.sleep(0.01)
        stop.set()
        await running
    assert (feed.counters.connections, feed.counters.gaps) == (1, 0)


async def test_a_frame_of_many_megabytes_passes() -> None:
    big = frame(
        0, "l2_data", events=[{"type": "snapshot", "product_id": "BTC-USD", "updates": ["x" * 6_000_000]}]
    )

    async def script(socket: ServerConnection, number: int) -> None:
        await send(socket, big, frame(1))
        await socket.close(1000)

    publisher = RememberingPublisher()
    async with scripted_server(script) as (url, _):
        feed = make_feed(url, publisher, until_closed=True)
        await feed.run(asyncio.Event())
    assert (feed.counters.frames, feed.counters.gaps, len(publisher.ticks)) == (2, 0, 1)


async def test_a_frame_over_the_limit_ends_the_connection_with_a_reason() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await send(socket, frame(0))
        if number == 0:
            await send(socket, "x" * 5_000)
        await socket.wait_closed()

    publisher = RememberingPublisher()
    settings = QUICK.model_copy(update={"max_frame_bytes": 4_000})
    async with scripted_server(script) as (url, _):
        await run_until(make_feed(url, publisher, settings=settings), lambda: len(publisher.ticks) == 2)
    assert publisher.events("disconnected")[0].detail["close_code"] == 1009


async def test_refused_subscriptions_end_with_what_the_exchange_said() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await send(socket, ERROR)
        await socket.wait_closed()

    publisher = RememberingPublisher()
    async with scripted_server(script) as (url, _):
        with pytest.raises(FeedError, match="authentication failure"):
            await make_feed(url, publisher, until_closed=True, give_up_after_s=0.2).run(asyncio.Event())
    assert publisher.events("disconnected")[0].detail["reason"] == "refused"


async def test_a_server_of_another_protocol_is_named_with_its_fault() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        while True:
            await socket.send("hello, this is a chat")
            await asyncio.sleep(0.02)

    publisher = RememberingPublisher()
    async with scripted_server(script) as (url, _):
        with pytest.raises(FeedError, match="not a frame") as caught:
            await make_feed(url, publisher, give_up_after_s=0.2).run(asyncio.Event())
    assert "\n" not in str(caught.value)
    assert publisher.dead


async def test_plain_http_is_no_feed() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        writer.close()

    async with tcp_server(answer) as port:
        with pytest.raises(FeedError, match="HTTP 200"):
            await make_feed(f"ws://127.0.0.1:{port}", RememberingPublisher(), give_up_after_s=0.1).run(
                asyncio.Event()
            )


async def test_another_protocol_altogether_is_no_feed() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        writer.close()

    async with tcp_server(answer) as port:
        with pytest.raises(FeedError) as caught:
            await make_feed(f"ws://127.0.0.1:{port}", RememberingPublisher(), give_up_after_s=0.1).run(
                asyncio.Event()
            )
    assert "\n" not in str(caught.value)
    assert f"127.0.0.1:{port}" in str(caught.value)


async def test_nobody_listening_is_retried_and_given_up_only_when_asked() -> None:
    async with tcp_server(lambda *_: None) as port:
        pass
    url = f"ws://127.0.0.1:{port}"
    with pytest.raises(FeedError, match=r"no readable frame for 0\.2 s"):
        await make_feed(url, RememberingPublisher(), give_up_after_s=0.2).run(asyncio.Event())
    publisher = RememberingPublisher()
    feed = make_feed(url, publisher)
    await run_until(feed, lambda: feed.counters.failed_attempts > 5)
    # Attempts that reach nobody are logged, not published.
    assert publisher.messages == []


async def test_a_turned_away_handshake_waits_as_long_as_the_server_asks() -> None:
    turned_away_at: list[float] = []
    opened_at: list[float] = []

    def turn_away(socket: ServerConnection, request: Request) -> Response | None:
        if turned_away_at:
            return None
        turned_away_at.append(time.monotonic())
        response = socket.respond(429, "slow down\n")
        response.headers["Retry-After"] = "1"
        return response

    async def script(socket: ServerConnection, number: int) -> None:
        opened_at.append(time.monotonic())
        await send(socket, frame(0))
        await socket.close(1000)

    settings = QUICK.model_copy(update={"backoff_max_s": 5.0})
    async with scripted_server(script, process_request=turn_away) as (url, _):
        feed = make_feed(url, RememberingPublisher(), until_closed=True, settings=settings)
        await feed.run(asyncio.Event())
    assert opened_at[0] - turned_away_at[0] >= 1.0
    assert feed.counters.failed_attempts == 1


async def test_numbers_that_go_back_for_good_are_reconnected() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        if number == 0:
            await send(socket, *(frame(n) for n in range(300)), *(frame(n) for n in range(300)))
            await socket.wait_closed()
        await send(socket, frame(0))
        await socket.wait_closed()

    publisher = RememberingPublisher()
    async with scripted_server(script) as (url, _):
        await run_until(make_feed(url, publisher), lambda: len(publisher.ticks) == 301)
    assert publisher.events("disconnected")[0].detail["reason"] == "sequence_broken"


async def test_a_clean_stop_leaves_a_final_checkpoint() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await send(socket, *(frame(n) for n in range(10)))
        await socket.wait_closed()

    publisher = RememberingPublisher()
    settings = QUICK.model_copy(update={"checkpoint_s": 60.0})
    async with scripted_server(script) as (url, _):
        await run_until(make_feed(url, publisher, settings=settings), lambda: len(publisher.ticks) == 10)
    assert publisher.kinds == ["connected", "checkpoint", "disconnected"]
    assert publisher.events("checkpoint")[0].detail["to_sequence"] == 9
    assert publisher.events("disconnected")[0].detail["reason"] == "stopped"


async def test_checkpoints_come_while_the_connection_lasts() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await chatter(socket, heartbeats=True)

    publisher = RememberingPublisher()
    async with scripted_server(script) as (url, _):
        await run_until(make_feed(url, publisher), lambda: len(publisher.events("checkpoint")) >= 3)
    spans = [(e.detail["from_sequence"], e.detail["to_sequence"]) for e in publisher.events("checkpoint")]
    assert spans[0][0] == 0
    assert all(after[0] == before[1] + 1 for before, after in pairwise(spans))


@asynccontextmanager
async def tcp_server(answer: Any) -> AsyncIterator[int]:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
