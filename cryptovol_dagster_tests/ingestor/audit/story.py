"""A feed told frame by frame: the recorder's own bookkeeping → raw storage, with losses planted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from cryptovol_dagster_tests.ingestor.feed.support import T0_NS, entry, frame
from ingestor.archive.schema import to_batch
from ingestor.archive.writer import OpenFile
from ingestor.envelope import DECODERS, EVENTS, TOPICS, EventKind, encode
from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.feed.connection import Connection
from ingestor.feed.counters import FeedCounters
from ingestor.kafka.publisher import Offsets
from ingestor.times import NS

PARTITIONS = {b"BTC-USD": 0, b"ETH-USD": 1}


class Story:
    """Connections whose frames become messages in partitions, and those become files.

    Attributes:
        lose: topics of which the next message is acknowledged by nobody and never stored.
        at_ns: wall clock of the events told next.
    """

    def __init__(self, raw_dir: Path, log_id: str = "abcd1234") -> None:
        self.raw_dir = raw_dir
        self.log_id = log_id
        self.log_ids: dict[str, str] = {}
        self.at_ns = T0_NS
        self.lose: set[str] = set()
        self._logs: dict[tuple[str, int], list[bytes]] = defaultdict(list)
        self._stored: dict[tuple[str, int], int] = defaultdict(int)

    def connect(self, name: str, *, of_a_second: int = 10) -> Told:
        """Begin a connection of that many frames a second."""
        connection = Connection(name, self, FeedCounters(), 10**18)
        connection.publish_event("connected", {}, self.at_ns)
        return Told(self, connection, of_a_second)

    @property
    def logs(self) -> dict[str, str]:
        """Of every topic, the log that is told in checkpoints."""
        return {**dict.fromkeys(TOPICS, self.log_id), **self.log_ids}

    def publish(self, topic: str, key: bytes, value: bytes) -> None:
        """Put a message into its partition (the publisher's part)."""
        if topic == EVENTS:
            event = DECODERS[EVENTS].decode(value)
            value = encode(msgspec.structs.replace(event, at_ns=self.at_ns))
        if topic in self.lose:
            self.lose.discard(topic)
            return
        self._logs[topic, PARTITIONS.get(key, 0)].append(value)

    def after_acknowledged(self, then: Callable[[Offsets], None]) -> None:
        """All that was published is acknowledged at once."""
        offsets: dict[str, dict[int, int]] = {}
        for (topic, partition), messages in self._logs.items():
            offsets.setdefault(topic, {})[partition] = len(messages) - 1
        then(offsets)

    def store(self, *, every: int = 10**9, without: tuple[str, ...] = ()) -> None:
        """Store what was published since the last call, in files of at most `every` records."""
        for (topic, partition), messages in self._logs.items():
            if topic in without:
                continue
            while (first := self._stored[topic, partition]) < len(messages):
                batch = to_batch(
                    topic, partition, first, messages[first : first + every], lambda _: T0_NS, None
                )
                file = OpenFile(self.raw_dir, topic, self.log_ids.get(topic, self.log_id), partition, first)
                fitting = file.fitting(batch)
                file.append(batch.slice(0, fitting), 0)
                file.publish()
                self._stored[topic, partition] = file.next_offset

    def recreate(self, topic: str, log_id: str) -> None:
        """The topic is deleted and created anew: what was not stored of it is gone, offsets begin again."""
        self.log_ids[topic] = log_id
        for of_topic, partition in list(self._logs):
            if of_topic == topic:
                self._logs[topic, partition] = []
                self._stored[topic, partition] = 0

    def files(self, topic: str) -> list[Path]:
        """What is stored of a topic, by name."""
        return sorted((self.raw_dir / topic).glob("date=*/hour=*/*.parquet"))


class Told:
    """One connection of a story; frames are numbered from 0 and come `of_a_second` a second."""

    def __init__(self, story: Story, connection: Connection, of_a_second: int) -> None:
        self._story = story
        self._connection = connection
        self._step_ns = NS // of_a_second
        self._began_ns = story.at_ns
        self.next_number = 0

    @property
    def name(self) -> str:
        return self._connection.connection_id

    def frames(self, *kinds: str) -> Told:
        """Receive frames: a channel's name, ``gap`` (never comes), ``dead`` or ``empty``."""
        for kind in kinds:
            number, time_ns = self.next_number, self._began_ns + self.next_number * self._step_ns
            self.next_number += 1
            self._story.at_ns = max(self._story.at_ns, time_ns)
            if kind != "gap":
                self._connection.on_frame(_frame(kind, number, time_ns), time_ns + 1)
        return self

    def checkpoint(self) -> Told:
        self._connection.checkpoint()
        return self

    def tell(self, kind: EventKind, detail: dict[str, Any]) -> Told:
        self._connection.publish_event(kind, detail, self._story.at_ns)
        return self

    def end(self) -> Told:
        """The last checkpoint, and `disconnected`."""
        self._connection.disconnected({"last_sequence": self._connection.last_sequence})
        return self


def _frame(kind: str, number: int, time_ns: int) -> bytes:
    parts: dict[str, Any] = {"timestamp": ns_to_rfc3339(time_ns)}
    if kind == "dead":
        return frame(number, **parts, events=[{"tickers": 1}]).encode()
    if kind == "empty":
        return frame(number, **parts, events=[{"type": "update", "tickers": []}]).encode()
    if kind == "both":
        both = [entry("BTC-USD"), entry("ETH-USD")]
        return frame(number, **parts, events=[{"type": "update", "tickers": both}]).encode()
    return frame(number, kind, **parts).encode()
