"""Statistics of the stream in bounded memory: exact counts, quantiles to one percent. Pure.

Messages go in as bytes with the time they arrived at; no Kafka and no clock here.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ingestor.envelope import (
    DEAD,
    DECODERS,
    EVENTS,
    FEATURES_TOPIC,
    PROGRESS_MARK,
    SCHEMA_VERSION,
    TICKS,
    TRADES,
    FeedEvent,
    TickMessage,
    TradeMessage,
)
from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.times import DAY_NS, NS

NS_PER_MS = 1_000_000
RECENT_S = 5.0
#: Half-width of a bucket of `Quantiles`, relative to its value.
RELATIVE_ERROR = 0.01
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA = math.log(_GAMMA)
#: Durations shorter than this are reported as 0.
_LEAST_NS = 1_000
_SLOT_S = 0.5
_FIRST_ERRORS = 5
#: Invalid messages must not fill the memory with their names.
_MOST_PRODUCTS, _OTHERS = 1_000, "(others)"
#: Events this old were not sent now, even if the clocks differ.
_RECORDING_NS = DAY_NS


class Quantiles:
    """Quantiles of durations in ns, negative ones too, from a histogram of logarithmic buckets.

    The DDSketch of Masson, Rim and Lee (VLDB 2019) without merging: a quantile is within `RELATIVE_ERROR` of
    the value of its rank (1 µs where that is nearer to 0); counts, least and greatest are exact. Some 3,700
    buckets cover the range of 64 bits.
    """

    def __init__(self) -> None:
        self.count = 0
        self.negative = 0
        self.least_ns: int | None = None
        self.greatest_ns: int | None = None
        #: bucket → count; −k mirrors k, 0 has durations below 1 µs.
        self._buckets: Counter[int] = Counter()

    def add(self, value_ns: int) -> None:
        """Add one duration."""
        self.count += 1
        self.negative += value_ns < 0
        if self.least_ns is None or value_ns < self.least_ns:
            self.least_ns = value_ns
        if self.greatest_ns is None or value_ns > self.greatest_ns:
            self.greatest_ns = value_ns
        size = abs(value_ns)
        bucket = 0 if size < _LEAST_NS else 1 + math.ceil(math.log(size / _LEAST_NS) / _LOG_GAMMA)
        self._buckets[-bucket if value_ns < 0 else bucket] += 1

    def quantile_ns(self, share: float) -> float | None:
        """Return the value that a `share` of all is at or below; None without values.

        Args:
            share: from 0 to 1.
        """
        if self.least_ns is None or self.greatest_ns is None:
            return None
        rank = max(1, math.ceil(share * self.count))
        passed = 0
        for bucket in sorted(self._buckets):
            passed += self._buckets[bucket]
            if passed >= rank:
                return min(max(_middle_ns(bucket), self.least_ns), self.greatest_ns)
        return float(self.greatest_ns)

    def as_dict(self) -> dict[str, Any]:
        """Return milliseconds, for JSON."""
        values = {f"p{share:g}": self.quantile_ns(share / 100) for share in (50, 90, 99)}
        values["max"] = self.greatest_ns
        return {
            "count": self.count,
            **{name: None if ns is None else round(ns / NS_PER_MS, 3) for name, ns in values.items()},
            "negative_share": round(self.negative / self.count, 4) if self.count else None,
        }


def _is_progress(key: bytes | str | None) -> bool:
    """Return whether a record of ``ticks.features`` says how far a partition has closed, and is no row."""
    return (key.decode(errors="replace") if isinstance(key, bytes) else key or "").startswith(PROGRESS_MARK)


def _middle_ns(bucket: int) -> float:
    if not bucket:
        return 0.0
    size = _LEAST_NS * _GAMMA ** (abs(bucket) - 1) * 2 / (1 + _GAMMA)
    return math.copysign(size, bucket)


class RecentCount:
    """Rate of the last `RECENT_S` seconds, to half a second."""

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque(maxlen=int(RECENT_S / _SLOT_S) + 1)

    def add(self, at_s: float) -> None:
        """Count one at `at_s`, which never decreases."""
        slot = int(at_s / _SLOT_S)
        if self._slots and self._slots[-1][0] == slot:
            self._slots[-1][1] += 1
        else:
            self._slots.append([slot, 1])

    def per_second(self, now_s: float) -> float:
        """Return the rate of the last seconds, or of all of them where there were fewer."""
        first = int(now_s / _SLOT_S) - int(RECENT_S / _SLOT_S)
        return sum(count for slot, count in self._slots if slot > first) / max(min(now_s, RECENT_S), _SLOT_S)


@dataclass
class ProductSeen:
    """Statistics of one product.

    Attributes:
        ticks: messages of ``ticks.raw``.
        trades: messages of ``trades.raw``.
        newest_event_time_ns: newest event time among the ticks; 0 before the first.
        out_of_order: ticks older than one that had arrived before.
        read_to_here: from reading the socket to arriving here.
        exchange_to_read: from the exchange's timestamp to reading the socket; negative where its clock is
            ahead of the reader's by more than the way takes.
        recent: ticks of the last seconds.
    """

    ticks: int = 0
    trades: int = 0
    newest_event_time_ns: int = 0
    out_of_order: int = 0
    read_to_here: Quantiles = field(default_factory=Quantiles)
    exchange_to_read: Quantiles = field(default_factory=Quantiles)
    recent: RecentCount = field(default_factory=RecentCount)


@dataclass(frozen=True)
class PartitionSeen:
    """End of a partition's log, and the positions of this observation and of the archive.

    Attributes:
        topic: without prefix.
        partition: its number.
        log_end: offset that the next record gets.
        position: offset that this observation reads next.
        stored: offset that the archive has committed; None where there is none, or where it is unknown.
    """

    topic: str
    partition: int
    log_end: int
    position: int
    stored: int | None = None

    @property
    def behind(self) -> int:
        """Number of records that this observation has not read yet."""
        return max(0, self.log_end - self.position)

    @property
    def archive_lag(self) -> int | None:
        """Number of records that the archive has not stored yet; None where unknown."""
        return None if self.stored is None else max(0, self.log_end - self.stored)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**vars(self), "behind": self.behind, "archive_lag": self.archive_lag}


class _Row(msgspec.Struct):
    """Counted fields of a row of ``ticks.features``; others are ignored."""

    revision: int = 0


class _Entry(msgspec.Struct):
    product_id: str


_decode_row = msgspec.json.Decoder(_Row).decode
_decode_entry = msgspec.json.Decoder(_Entry).decode


@dataclass
class StreamReport:
    """Result of an observation of the stream.

    Attributes:
        bootstrap_servers: address of the broker.
        topic_prefix: put before every topic's name there.
        seconds: duration so far.
        now_ns: wall clock of this state.
        products: by product id.
        messages: valid messages by topic.
        invalid: messages that are invalid on their topic, by topic.
        first_errors: the reasons of the first of them.
        events: messages of ``feed.events`` by kind.
        missing_frames: lost frames according to their gaps.
        last_dead_reason: why the newest dead letter is one.
        revisions: rows of ``ticks.features`` that correct an earlier one.
        partitions: the newest known positions.
        archive_group: the archive's consumer group.
        archive_unknown: why its offsets are not known; empty where they are.
    """

    bootstrap_servers: str
    topic_prefix: str = ""
    seconds: float = 0.0
    now_ns: int = 0
    products: dict[str, ProductSeen] = field(default_factory=dict)
    messages: Counter[str] = field(default_factory=Counter)
    invalid: Counter[str] = field(default_factory=Counter)
    first_errors: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    missing_frames: int = 0
    last_dead_reason: str = ""
    revisions: int = 0
    partitions: tuple[PartitionSeen, ...] = ()
    archive_group: str = ""
    archive_unknown: str = ""

    def take_in(
        self, topic: str, key: bytes | str | None, value: bytes, *, place: str, now_ns: int, at_s: float
    ) -> None:
        """Add one message.

        Args:
            topic: without prefix.
            key: its key.
            value: its value.
            place: its topic, partition and offset, as text.
            now_ns: wall clock at which it arrived.
            at_s: seconds since the start.
        """
        if topic == FEATURES_TOPIC and _is_progress(key):
            return
        try:
            self._count(topic, key, value, now_ns, at_s)
        except (msgspec.DecodeError, ValueError) as invalid:
            self.invalid[topic] += 1
            if len(self.first_errors) < _FIRST_ERRORS:
                self.first_errors.append(f"{place}: {invalid}")
        else:
            self.messages[topic] += 1

    @property
    def problem(self) -> str | None:
        """Return why the stream is not healthy, in one line; None where it is."""
        if count := self.invalid.total():
            return f"{count} invalid messages at {self.bootstrap_servers}: {self.first_errors[0]}"
        if not self.messages[TICKS]:
            topic = self.topic_prefix + TICKS
            return f"nothing arrived on {topic} at {self.bootstrap_servers} in {self.seconds:.0f} s"
        return None

    @property
    def notes(self) -> list[str]:
        """Return notes that are needed to interpret the numbers."""
        notes = []
        if self.newest_event_time_ns and self.age_ns(self.newest_event_time_ns) > _RECORDING_NS:
            notes.append(
                "event times are not of today: this is a recording or a simulated market, so age and "
                "exchange→read show how old it is, not how slow"
            )
        if self.archive_unknown:
            notes.append(f"the position of {self.archive_group} is not available: {self.archive_unknown}")
        return notes

    @property
    def newest_event_time_ns(self) -> int:
        """Newest event time of all products; 0 before the first."""
        return max((seen.newest_event_time_ns for seen in self.products.values()), default=0)

    def age_ns(self, event_time_ns: int) -> int:
        """Return the age of an event."""
        return self.now_ns - event_time_ns

    @property
    def archive_lag(self) -> int | None:
        """Return the number of records that the archive has not stored yet; None where unknown."""
        lags = [partition.archive_lag for partition in self.partitions]
        known = [lag for lag in lags if lag is not None]
        return sum(known) if known else None

    def per_second(self, seen: ProductSeen) -> float:
        """Return a product's ticks per second, over the whole observation."""
        return seen.ticks / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; latencies in milliseconds."""
        return {
            "bootstrap_servers": self.bootstrap_servers,
            "topic_prefix": self.topic_prefix,
            "seconds": round(self.seconds, 3),
            "products": {name: self._product(seen) for name, seen in sorted(self.products.items())},
            "messages": dict(sorted(self.messages.items())),
            "invalid": self.invalid.total(),
            "first_errors": self.first_errors,
            "events": dict(sorted(self.events.items())),
            "gaps": self.events["gap"],
            "missing_frames": self.missing_frames,
            "connections": self.events["connected"],
            "reconnects": self.events["resumed"],
            "dead_letters": self.messages[DEAD],
            "last_dead_reason": self.last_dead_reason,
            "feature_rows": self.messages[FEATURES_TOPIC],
            "feature_revisions": self.revisions,
            "partitions": [partition.as_dict() for partition in self.partitions],
            "archive_group": self.archive_group,
            "archive_lag": self.archive_lag,
            "quantiles_within": RELATIVE_ERROR,
            "notes": self.notes,
            "problem": self.problem,
        }

    def _product(self, seen: ProductSeen) -> dict[str, Any]:
        newest_ns = seen.newest_event_time_ns
        return {
            "messages": seen.ticks,
            "per_second": round(self.per_second(seen), 3),
            "per_second_last_5_s": round(seen.recent.per_second(self.seconds), 3),
            "trades": seen.trades,
            "newest_event_time": ns_to_rfc3339(newest_ns) if newest_ns else None,
            "age_s": round(self.age_ns(newest_ns) / NS, 3) if newest_ns else None,
            "out_of_order": seen.out_of_order,
            "read_to_here_ms": seen.read_to_here.as_dict(),
            "exchange_to_read_ms": seen.exchange_to_read.as_dict(),
        }

    def _count(self, topic: str, key: bytes | str | None, value: bytes, now_ns: int, at_s: float) -> None:
        if topic == FEATURES_TOPIC:
            self.revisions += _decode_row(value).revision > 0
            return
        message = DECODERS[topic].decode(value)
        if message.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema version {message.schema_version}, expected {SCHEMA_VERSION}")
        if topic == TICKS:
            self._count_tick(message, self._checked(message, message.ticker, key), now_ns, at_s)
        elif topic == TRADES:
            self._checked(message, message.trade, key).trades += 1
        elif topic == EVENTS:
            self._count_event(message)
        else:
            self.last_dead_reason = message.reason

    def _checked(
        self, message: TickMessage | TradeMessage, entry: msgspec.Raw, key: bytes | str | None
    ) -> ProductSeen:
        """Return the product of a message, which its key and its entry must confirm."""
        name = message.product_id
        if key != name.encode():
            raise ValueError(f"key {key!r} is not the product {name}")
        inner = _decode_entry(entry).product_id
        if inner != name:
            raise ValueError(f"entry of {inner} under {name}")
        if name not in self.products and len(self.products) >= _MOST_PRODUCTS:
            name = _OTHERS
        return self.products.setdefault(name, ProductSeen())

    def _count_tick(self, tick: TickMessage, seen: ProductSeen, now_ns: int, at_s: float) -> None:
        seen.ticks += 1
        seen.recent.add(at_s)
        if tick.event_time_ns < seen.newest_event_time_ns:
            seen.out_of_order += 1
        else:
            seen.newest_event_time_ns = tick.event_time_ns
        seen.read_to_here.add(now_ns - tick.received_at_ns)
        seen.exchange_to_read.add(tick.received_at_ns - tick.event_time_ns)

    def _count_event(self, event: FeedEvent) -> None:
        self.events[event.kind] += 1
        if event.kind == "gap":
            self.missing_frames += int(event.detail.get("count", 0))
