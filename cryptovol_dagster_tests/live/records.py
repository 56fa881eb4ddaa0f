"""Kafka messages without Kafka."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError
from msgspec import Raw

from cryptovol_dagster.core.specs import NS
from cryptovol_dagster_tests.core.market.builders import START_NS
from ingestor.envelope import TickMessage, TradeMessage, encode
from ingestor.exchange.clock import ns_to_rfc3339


@dataclass(frozen=True)
class Record:
    """What the featurizer asks of a message."""

    at: int | None
    content: bytes | None = b""
    partition_number: int | None = 0
    failure: KafkaError | None = None

    def offset(self) -> int | None:
        return self.at

    def value(self) -> bytes | None:
        return self.content

    def partition(self) -> int | None:
        return self.partition_number

    def error(self) -> KafkaError | None:
        return self.failure


def tick_value(
    second: float, *, sequence: int, product: str = "BTC-USD", connection: str = "c", bid: str = "67000.00"
) -> bytes:
    """A tick of ticks.raw, `second` after `START_NS`."""
    quote = (
        f'{{"product_id":"{product}","price":"67000.01","best_bid":"{bid}","best_ask":"67000.02",'
        '"best_bid_quantity":"0.5","best_ask_quantity":"1.25"}'
    )
    return encode(TickMessage(**_position(second, sequence, product, connection), ticker=Raw(quote.encode())))


def trade_value(second: float, *, number: int, product: str = "BTC-USD", size: str | None = "0.002") -> bytes:
    """A trade of trades.raw, `second` after `START_NS`."""
    time_ns = START_NS + round(second * NS)
    sized = "" if size is None else f'"size":"{size}",'
    entry = (
        f'{{"trade_id":"{number}","product_id":"{product}","price":"67000.01",{sized}"side":"BUY",'
        f'"time":"{ns_to_rfc3339(time_ns)}"}}'
    )
    return encode(TradeMessage(**_position(second, number, product, "c"), trade=Raw(entry.encode())))


def tick(offset: int, *, second: float, **fields: Any) -> Any:
    """A record of ticks.raw."""
    return Record(offset, tick_value(second, sequence=offset, **fields))


def trade(offset: int, *, second: float, size: str | None = "0.002") -> Any:
    """A record of trades.raw."""
    return Record(offset, trade_value(second, number=offset, size=size))


def _position(second: float, sequence: int, product: str, connection: str) -> dict[str, Any]:
    time_ns = START_NS + round(second * NS)
    return {
        "product_id": product,
        "event_time_ns": time_ns,
        "received_at_ns": time_ns + 5,
        "connection_id": connection,
        "sequence_num": sequence,
        "event_index": 0,
        "entry_index": 0,
        "event_type": "update",
    }
