"""One measurement of the recorder in a process (so core and memory) of its own; prints JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import ConnectionClosed

from ingestor.feed.connection import Connection
from ingestor.feed.counters import FeedCounters
from ingestor.kafka.broker import connect
from ingestor.kafka.publisher import Publisher
from ingestor.recorder import IngestOptions, run_ingest
from ingestor.settings.sections import IngestSettings, KafkaSettings, Settings, StorageSettings

#: Later than any frame, so that none is a dead letter for being ahead of the clock.
_RECEIVED_NS = 1_900_000_000 * 1_000_000_000
_SAMPLE_S = 0.25


class Memory(threading.Thread):
    """Samples this process's resident memory until it is told to end."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples_mb: list[float] = []
        self._end = threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self._end.wait(_SAMPLE_S):
            self.samples_mb.append(process.memory_info().rss / 1e6)

    def report(self) -> dict[str, float]:
        """Peak up to a quarter of the run, and of the whole."""
        self._end.set()
        self.join()
        quarter = self.samples_mb[: max(1, len(self.samples_mb) // 4)]
        return {"peak_mb_quarter": max(quarter), "peak_mb": max(self.samples_mb)}


class _Discard:
    """An outlet that takes everything and keeps nothing."""

    logs: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.bytes = 0

    def publish(self, topic: str, key: bytes, value: bytes) -> None:
        self.bytes += len(value)

    def after_acknowledged(self, then: Any) -> None:
        raise AssertionError("no checkpoint is asked for")


class _Keep(_Discard):
    """An outlet that keeps the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[str, bytes, bytes]] = []

    def publish(self, topic: str, key: bytes, value: bytes) -> None:
        self.messages.append((topic, key, value))


def _payloads(path: Path) -> Iterator[bytes]:
    """The frames of a file that `benchmarks.feed_source` made."""
    data, at = memoryview(path.read_bytes()), 0
    while at < len(data):
        length, header = data[at + 1], 2
        if length == 126:
            length, header = struct.unpack_from("!H", data, at + 2)[0], 4
        yield bytes(data[at + header : at + header + length])
        at += header + length


def _connection(outlet: _Discard, counters: FeedCounters) -> Connection:
    return Connection(uuid.uuid4().hex, outlet, counters, 300 * 1_000_000_000)


def parse(path: Path) -> dict[str, Any]:
    """Bytes → parsed, checked, encoded messages; no socket, no broker."""
    frames = list(_payloads(path))
    counters = FeedCounters()
    connection = _connection(_Discard(), counters)
    began, cpu = time.perf_counter(), time.process_time()
    for frame in frames:
        connection.on_frame(frame, _RECEIVED_NS)
    return _times(began, cpu) | {"ticks": counters.ticks}


def socket(url: str) -> dict[str, Any]:
    """Read the socket and do nothing: what the WebSocket library alone allows."""

    async def read() -> tuple[int, float, float]:
        frames = 0
        async with websocket(url, compression=None, ping_interval=None, proxy=None) as connection:
            await connection.send('{"type":"subscribe","channel":"ticker"}')
            await connection.recv(decode=False)
            began, cpu = time.perf_counter(), time.process_time()
            try:
                while True:
                    frames += await connection.recv(decode=False) is not None
            except ConnectionClosed:
                return frames, began, cpu

    frames, began, cpu = asyncio.run(read())
    return _times(began, cpu) | {"frames": frames}


def produce(path: Path, servers: str) -> dict[str, Any]:
    """Encoded messages → acknowledged by the broker, through the recorder's own publisher."""
    outlet, counters = _Keep(), FeedCounters()
    connection = _connection(outlet, counters)
    for frame in _payloads(path):
        connection.on_frame(frame, _RECEIVED_NS)

    async def publish() -> tuple[float, float]:
        with connect(_kafka(servers)) as broker:
            broker.ensure_topics()
            publisher = Publisher(broker, unarchived_limit_bytes=IngestSettings().embedded_unarchived_bytes)
            await asyncio.sleep(2)  # the new topics' first leaders
            began, cpu = time.perf_counter(), time.process_time()
            for message in outlet.messages:
                publisher.publish(*message)
                if publisher.blocked:
                    await publisher.wait_for_room()
            if not await publisher.drain(60):
                raise SystemExit("the broker did not acknowledge everything within 60 s")
            publisher.close()
            return began, cpu

    began, cpu = asyncio.run(publish())
    return _times(began, cpu) | {"ticks": counters.ticks}


def record(url: str, servers: str) -> dict[str, Any]:
    """Socket → Kafka, acknowledged → raw storage: the recorder as people run it."""
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(kafka=_kafka(servers), storage=StorageSettings(data_dir=Path(folder)))
        memory = Memory()
        memory.start()
        began, cpu = time.perf_counter(), time.process_time()
        summary = run_ingest(settings, IngestOptions(url=url, until_closed=True))
        report = _times(began, cpu) | memory.report()
        raw = sum(file.stat().st_size for file in settings.storage.raw_dir.rglob("*") if file.is_file())
        assert summary.feed is not None
        stored = sum(sum(summary.archived_offsets[topic].values()) for topic in ("ticks.raw",))
        return report | {
            "ticks": summary.feed.ticks,
            "stored": stored,
            "frames": summary.feed.frames,
            "gaps": summary.feed.gaps,
            "raw_mb": raw / 1e6,
            "waited_s": summary.waited_for_room_s,
        }


def _kafka(servers: str) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=servers, topic_prefix=f"bench-{uuid.uuid4().hex[:8]}.")


def _times(began: float, cpu_began: float) -> dict[str, float]:
    return {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu_began}


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    run = {
        "parse": lambda path: parse(Path(path)),
        "socket": socket,
        "produce": lambda path, servers: produce(Path(path), servers),
        "record": record,
    }
    print(json.dumps(run[verb](*arguments)))
