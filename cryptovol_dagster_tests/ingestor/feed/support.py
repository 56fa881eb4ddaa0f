"""Doubles for the feed's tests: a publisher that remembers, and a server that follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from websockets.asyncio.server import ServerConnection, serve

from ingestor.envelope import DEAD, DECODERS, EVENTS, TICKS, TRADES
from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.kafka.publisher import Offsets
from ingestor.settings.sections import IngestSettings

NS = 10**9
#: Event time of sequence number 0 in `frame`.
T0_NS = 1_777_629_600 * NS

#: Short enough for tests, long enough for a busy machine.
QUICK = IngestSettings(
    frame_silence_s=0.4,
    heartbeat_silence_s=0.8,
    backoff_initial_s=0.01,
    backoff_max_s=0.05,
    checkpoint_s=0.05,
    open_timeout_s=2.0,
)


class RememberingPublisher:
    """Keeps what is published. Acknowledges at once, or when told to."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.messages: list[tuple[str, bytes, Any]] = []
        self.raw: list[bytes] = []
        self.blocked = False
        self.logs = {TICKS: "abcd1234"}
        self._at_once = at_once
        self._waiting: list[tuple[int, Callable[[Offsets], None]]] = []

    def publish(self, topic: str, key: bytes, value: bytes) -> None:
        self.messages.append((topic, key, DECODERS[topic].decode(value)))
        self.raw.append(value)

    def after_acknowledged(self, then: Callable[[Offsets], None]) -> None:
        self._waiting.append((len(self.messages), then))
        if self._at_once:
            self.acknowledge()

    def acknowledge(self) -> None:
        while self._waiting:
            count, then = self._waiting.pop(0)
            then({TICKS: {0: count - 1}})

    def poll(self) -> None:
        """Nothing is on its way."""

    async def wait_for_room(self) -> None:
        while self.blocked:
            await asyncio.sleep(0.01)

    def of(self, topic: str) -> list[Any]:
        return [message for name, _, message in self.messages if name == topic]

    @property
    def ticks(self) -> list[Any]:
        return self.of(TICKS)

    @property
    def trades(self) -> list[Any]:
        return self.of(TRADES)

    @property
    def dead(self) -> list[Any]:
        return self.of(DEAD)

    def events(self, kind: str | None = None) -> list[Any]:
        return [event for event in self.of(EVENTS) if kind in (None, event.kind)]

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events()]


def entry(product: str = "BTC-USD", price: str = "64000.1") -> dict[str, Any]:
    """A ticker entry as documented."""
    return {
        "type": "ticker",
        "product_id": product,
        "price": price,
        "volume_24_h": "10.5",
        "low_24_h": "63000",
        "high_24_h": "65000",
        "low_52_w": "50000",
        "high_52_w": "110000",
        "price_percent_chg_24_h": "-0.5",
        "best_bid": "64000",
        "best_ask": "64000.01",
        "best_bid_quantity": "0.5",
        "best_ask_quantity": "0.25",
    }


def trade(product: str = "ETH-USD", trade_id: str = "1") -> dict[str, Any]:
    """A trade as documented."""
    return {
        "product_id": product,
        "trade_id": trade_id,
        "price": "1",
        "size": "2",
        "time": "2026-05-01T09:59:59.9Z",
        "side": "BUY",
    }


def frame(sequence_num: int, channel: str = "ticker", **parts: Any) -> str:
    """A frame timed `sequence_num` × 0.1 s after `T0_NS`; `events` replaces the usual content."""
    usual: dict[str, Any] = {
        "ticker": [{"type": "update", "tickers": [entry()]}],
        "heartbeats": [{"current_time": "now", "heartbeat_counter": sequence_num}],
        "subscriptions": [{"subscriptions": {"ticker": ["BTC-USD"]}}],
        "market_trades": [{"type": "update", "trades": [trade()]}],
    }
    content = {
        "channel": channel,
        "timestamp": ns_to_rfc3339(T0_NS + sequence_num * NS // 10),
        "sequence_num": sequence_num,
        "events": usual.get(channel, []),
        **parts,
    }
    return msgspec.json.encode(content).decode()


Script = Callable[[ServerConnection, int], Awaitable[None]]


@asynccontextmanager
async def scripted_server(
    script: Script, **options: Any
) -> AsyncIterator[tuple[str, list[list[dict[str, Any]]]]]:
    """Serve `script(socket, number)`; yields the address and what each connection subscribed to.

    The script starts once the first subscription has come.
    """
    subscriptions: list[list[dict[str, Any]]] = []

    async def serve_one(socket: ServerConnection) -> None:
        number = len(subscriptions)
        subscriptions.append([])
        subscriptions[number].append(msgspec.json.decode(await socket.recv()))

        async def take_further() -> None:
            async for message in socket:
                subscriptions[number].append(msgspec.json.decode(message))

        taking = asyncio.create_task(take_further())
        try:
            await script(socket, number)
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    async with serve(serve_one, "127.0.0.1", 0, compression=None, **options) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}", subscriptions


async def send(socket: ServerConnection, *frames: str) -> None:
    for each in frames:
        await socket.send(each)
