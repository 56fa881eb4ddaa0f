"""Look at the live stream from outside: what arrives on ``ticks.raw``, how fresh, and whether it is valid.

Partitions are assigned, never subscribed, and nothing is committed: a look changes nothing for anyone.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaException, Message, TopicPartition

from ingestor.envelope import DECODERS, EVENTS, SCHEMA_VERSION, TICKS, FeedEvent, TickMessage
from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.exchange.parse import product_of
from ingestor.kafka.broker import Broker, BrokerError

_GROUP = "cryptovol-check-stream"
#: Latencies kept for the quantiles of a product; more would only cost memory.
_LATENCIES_KEPT = 100_000
_FIRST_ERRORS = 5


@dataclass
class ProductSeen:
    """What arrived for one product. Latency: from reading the socket to arriving here."""

    messages: int = 0
    newest_event_time_ns: int = 0
    latencies_ms: list[float] = field(default_factory=list)

    def as_dict(self, seconds: float) -> dict[str, Any]:
        """Plain values, for JSON."""
        ordered = sorted(self.latencies_ms)
        return {
            "messages": self.messages,
            "per_second": round(self.messages / seconds, 3),
            "newest_event_time": ns_to_rfc3339(self.newest_event_time_ns),
            "latency_ms_p50": round(statistics.median(ordered), 3),
            "latency_ms_p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 3),
        }


@dataclass
class StreamReport:
    """What a look at the stream saw.

    Attributes:
        seconds: how long it looked.
        products: by product id.
        invalid: messages that are not what ``ticks.raw`` should hold.
        first_errors: the reasons of the first of them.
        events: messages of ``feed.events`` by kind.
        missing_frames: frames that the gaps among them say were lost.
    """

    topic: str
    bootstrap_servers: str
    seconds: float = 0.0
    products: dict[str, ProductSeen] = field(default_factory=dict)
    invalid: int = 0
    first_errors: list[str] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    missing_frames: int = 0

    @property
    def messages(self) -> int:
        """Valid messages of all products."""
        return sum(seen.messages for seen in self.products.values())

    @property
    def problem(self) -> str | None:
        """Why the stream is not healthy, in one line; None where it is."""
        if self.invalid:
            return f"{self.invalid} invalid messages on {self.topic}: {self.first_errors[0]}"
        if not self.messages:
            return f"nothing arrived on {self.topic} at {self.bootstrap_servers} in {self.seconds:.0f} s"
        return None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "topic": self.topic,
            "bootstrap_servers": self.bootstrap_servers,
            "seconds": round(self.seconds, 3),
            "messages": self.messages,
            "products": {name: seen.as_dict(self.seconds) for name, seen in sorted(self.products.items())},
            "invalid": self.invalid,
            "first_errors": self.first_errors,
            "events": dict(sorted(self.events.items())),
            "missing_frames": self.missing_frames,
            "problem": self.problem,
        }


def check_stream(
    broker: Broker,
    duration_s: float,
    *,
    from_beginning: bool = False,
) -> StreamReport:
    """Consume ``ticks.raw`` and ``feed.events`` for a while.

    Args:
        broker: where the topics are.
        duration_s: how long to look.
        from_beginning: read what the topics hold already, too.

    Raises:
        BrokerError: a topic is missing, or the broker fails while it is read.
    """
    report = StreamReport(broker.topic(TICKS), broker.bootstrap_servers)
    start = OFFSET_BEGINNING if from_beginning else OFFSET_END
    consumer = Consumer(broker.consumer_config(_GROUP))
    try:
        consumer.assign(
            [
                TopicPartition(broker.topic(topic), partition, start)
                for topic in (TICKS, EVENTS)
                for partition in range(broker.partitions(topic))
            ]
        )
        began = time.monotonic()
        while (left_s := began + duration_s - time.monotonic()) > 0:
            # One by one: a batch would wait to be filled, and that wait would be told as latency.
            message = consumer.poll(left_s)
            if message is not None:
                _take_in(report, message)
        report.seconds = time.monotonic() - began
    except KafkaException as error:
        reason = error.args[0].str()
        raise BrokerError(f"{report.topic} at {report.bootstrap_servers} cannot be read: {reason}") from error
    finally:
        consumer.close()
    return report


def _take_in(report: StreamReport, message: Message) -> None:
    error = message.error()
    if error is not None:
        raise BrokerError(f"{report.topic} at {report.bootstrap_servers} cannot be read: {error.str()}")
    value = message.value() or b""
    try:
        if message.topic() == report.topic:
            _take_in_tick(report, DECODERS[TICKS].decode(value), message.key())
        else:
            _take_in_event(report, DECODERS[EVENTS].decode(value))
    except (msgspec.DecodeError, ValueError) as invalid:
        report.invalid += 1
        if len(report.first_errors) < _FIRST_ERRORS:
            place = f"{message.topic()} partition {message.partition()} offset {message.offset()}"
            report.first_errors.append(f"{place}: {invalid}")


def _take_in_tick(report: StreamReport, tick: TickMessage, key: bytes | str | None) -> None:
    if tick.schema_version != SCHEMA_VERSION:
        raise ValueError(f"schema version {tick.schema_version}, expected {SCHEMA_VERSION}")
    if key != tick.product_id.encode():
        raise ValueError(f"key {key!r} is not the product {tick.product_id}")
    product_id = product_of(tick.ticker)
    if product_id != tick.product_id:
        raise ValueError(f"entry of {product_id} under {tick.product_id}")
    seen = report.products.setdefault(product_id, ProductSeen())
    seen.messages += 1
    seen.newest_event_time_ns = max(seen.newest_event_time_ns, tick.event_time_ns)
    if len(seen.latencies_ms) < _LATENCIES_KEPT:
        seen.latencies_ms.append((time.time_ns() - tick.received_at_ns) / 1e6)


def _take_in_event(report: StreamReport, event: FeedEvent) -> None:
    report.events[event.kind] = report.events.get(event.kind, 0) + 1
    if event.kind == "gap":
        report.missing_frames += int(event.detail.get("count", 0))
