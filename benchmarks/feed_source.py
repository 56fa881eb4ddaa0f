"""A feed that is never the bottleneck: WebSocket frames made beforehand, written to the socket as bytes.

``python -m benchmarks.feed_source make FILE FRAMES`` writes them, ``… serve FILE RATE`` prints an address and
plays the file to whoever subscribes (RATE 0: as fast as it is read), then closes with 1000.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from websockets.asyncio.server import ServerConnection, serve

from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.exchange.messages import TICKER
from ingestor.simulator.market import SyntheticMarket
from ingestor.times import NS

PRODUCTS = ("BTC-USD", "ETH-USD")
START_NS = 1_775_260_800 * NS
#: The market's own proportion: two products at four to five frames a second, a heartbeat a second.
TICKERS_PER_HEARTBEAT = 9
_CHUNK_BYTES = 256 * 1024
_BUFFER_BYTES = 4 * 1024 * 1024


def frames(tickers: int) -> Iterator[bytes]:
    """Numbered frames of one connection: an ack, then `tickers` ticker frames with heartbeats between."""
    number = itertools.count()
    head = b'{"channel":"%b","timestamp":"%b","sequence_num":%d,"events":%b}'
    acked = b'[{"subscriptions":{"ticker":["BTC-USD","ETH-USD"],"heartbeats":["heartbeats"]}}]'
    yield head % (b"subscriptions", ns_to_rfc3339(START_NS).encode(), next(number), acked)
    hours = tickers / 3_600 / TICKERS_PER_HEARTBEAT * 2 + 1
    market = itertools.chain.from_iterable(SyntheticMarket(PRODUCTS, START_NS, 7).segment(hours).blocks)
    quotes = (frame for frame in market if frame.channel == TICKER)
    for count, frame in enumerate(itertools.islice(quotes, tickers)):
        yield b"%b%d%b" % (frame.head, next(number), frame.tail)
        if count % TICKERS_PER_HEARTBEAT == 0:
            beat = b'[{"current_time":"","heartbeat_counter":%d}]' % count
            yield head % (b"heartbeats", ns_to_rfc3339(frame.time_ns).encode(), next(number), beat)


def make(path: Path, tickers: int) -> None:
    """Write the frames as a WebSocket server sends them."""
    with path.open("wb") as file:
        for data in frames(tickers):
            file.write(_framed(data))


def _framed(data: bytes) -> bytes:
    """An unmasked text frame (RFC 6455, section 5.2)."""
    if len(data) < 126:
        return struct.pack("!BB", 0x81, len(data)) + data
    return struct.pack("!BBH", 0x81, 126, len(data)) + data


async def play(path: Path, frames_per_s: float) -> None:
    """Serve the file once, to one client."""
    done = asyncio.Event()

    async def handle(socket: ServerConnection) -> None:
        await socket.recv()
        await asyncio.sleep(0.5)  # the other subscriptions; nobody reads them
        await (_paced(socket, path, frames_per_s) if frames_per_s else _flood(socket, path))
        await socket.close(1000)
        done.set()

    async with serve(
        handle, "127.0.0.1", 0, compression=None, ping_interval=None, close_timeout=None
    ) as server:
        print(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await done.wait()


async def _flood(socket: ServerConnection, path: Path) -> None:
    transport = socket.transport
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            transport.write(chunk)
            while transport.get_write_buffer_size() > _BUFFER_BYTES:
                await asyncio.sleep(0.001)
        while transport.get_write_buffer_size():
            await asyncio.sleep(0.001)


async def _paced(socket: ServerConnection, path: Path, frames_per_s: float) -> None:
    began, sent, data = time.monotonic(), 0, path.read_bytes()
    at = 0
    while at < len(data):
        length, header = data[at + 1], 2
        if length == 126:
            length, header = struct.unpack_from("!H", data, at + 2)[0], 4
        socket.transport.write(data[at : at + header + length])
        at += header + length
        sent += 1
        await asyncio.sleep(max(0.0, began + sent / frames_per_s - time.monotonic()))


if __name__ == "__main__":
    verb, name, number = sys.argv[1:]
    if verb == "make":
        make(Path(name), int(number))
    else:
        asyncio.run(play(Path(name), float(number)))
