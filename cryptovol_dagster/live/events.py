"""Content of feed.events: lost messages, and the feed's time."""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec
import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition
from numpy.typing import NDArray

from cryptovol_dagster.live.clients import BATCH_RECORDS, POLL_S, READ_TIMEOUT_S, check_error
from cryptovol_dagster.live.errors import LiveError
from ingestor.envelope import DECODERS, EVENTS, FeedEvent
from ingestor.kafka.broker import Broker


class KnownGaps:
    """First missing sequence number of every known gap, ascending, by connection."""

    def __init__(self) -> None:
        self.by_connection: dict[str, NDArray[np.int64]] = {}

    def add(self, gaps: Mapping[str, NDArray[np.int64]]) -> None:
        """Add gaps; those that are known already count once."""
        for connection, firsts in gaps.items():
            known = self.by_connection.get(connection, np.empty(0, np.int64))
            self.by_connection[connection] = np.union1d(known, np.asarray(firsts, dtype=np.int64))


class EventReader:
    """Reads feed.events whole; every instance does, whichever partitions it has."""

    def __init__(self, broker: Broker, consumer: Consumer, gaps: KnownGaps) -> None:
        """Read with `consumer`, and add lost messages to `gaps`."""
        self._broker, self._consumer, self._gaps = broker, consumer, gaps
        #: Newest event time since the last `take_newest_ns`.
        self._newest_ns: int | None = None

    def read_to_end(self) -> None:
        """Read every event so far: each loss is known before the first tick that follows it.

        Raises:
            LiveError: the end is not reached in time.
        """
        name = self._broker.topic(EVENTS)
        waiting = set(range(self._broker.partitions(EVENTS)))
        self._consumer.assign([TopicPartition(name, number, OFFSET_BEGINNING) for number in waiting])
        deadline_s = time.monotonic() + READ_TIMEOUT_S
        while waiting:
            if time.monotonic() >= deadline_s:
                raise LiveError(f"{name} could not be read to its end within {READ_TIMEOUT_S:g} s")
            waiting -= self.read(POLL_S)
        # Events before the start do not show that the feed is alive.
        self._newest_ns = None

    def read(self, timeout_s: float = 0.0) -> set[int]:
        """Read the events that have arrived; return the partitions that were read to their end."""
        ended: set[int] = set()
        while messages := self._consumer.consume(BATCH_RECORDS, timeout_s):
            values: list[bytes] = []
            for message in messages:
                error, number = message.error(), message.partition()
                if error is None:
                    values.append(message.value() or b"")
                elif error.code() == KafkaError._PARTITION_EOF and number is not None:
                    ended.add(number)
                else:
                    check_error(error, self._broker, EVENTS)
            self.add(values)
        return ended

    def add(self, values: list[bytes]) -> None:
        """Add encoded events. Undecodable events are left out: raw storage keeps and counts them."""
        gaps: dict[str, list[int]] = {}
        for value in values:
            try:
                event: FeedEvent = DECODERS[EVENTS].decode(value)
            except msgspec.MsgspecError:
                continue
            if event.kind == "gap" and isinstance(first := event.detail.get("from_sequence"), int):
                gaps.setdefault(event.connection_id, []).append(first)
            if event.event_time_ns is not None:
                self._newest_ns = max(event.event_time_ns, self._newest_ns or 0)
        self._gaps.add({name: np.array(firsts) for name, firsts in gaps.items()})

    def take_newest_ns(self) -> int | None:
        """Return the newest event time read since the last call; None where there is none."""
        newest_ns, self._newest_ns = self._newest_ns, None
        return newest_ns
