"""Messages as the feed publishes them, for whoever looks at a stream."""

from __future__ import annotations

import json

import msgspec

from ingestor import envelope
from ingestor.envelope import DeadLetter, FeedEvent, TickMessage, TradeMessage

NS = 10**9
T0_NS = 1_777_629_600 * NS  # 2026-05-01T10:00:00Z


def tick(
    product: str = "BTC-USD",
    inner: str = "BTC-USD",
    version: int = 1,
    event_time_ns: int = T0_NS,
    received_at_ns: int = T0_NS,
) -> bytes:
    entry = json.dumps({"type": "ticker", "product_id": inner, "price": "1"}).encode()
    return envelope.encode(
        TickMessage(
            schema_version=version,
            product_id=product,
            event_time_ns=event_time_ns,
            received_at_ns=received_at_ns,
            connection_id="c",
            sequence_num=0,
            event_index=0,
            entry_index=0,
            event_type="update",
            ticker=msgspec.Raw(entry),
        )
    )


def trade(product: str = "BTC-USD") -> bytes:
    entry = json.dumps({"trade_id": "1", "product_id": product, "price": "1"}).encode()
    return envelope.encode(
        TradeMessage(
            product_id=product,
            event_time_ns=T0_NS,
            received_at_ns=T0_NS,
            connection_id="c",
            sequence_num=0,
            event_index=0,
            entry_index=0,
            event_type="update",
            trade=msgspec.Raw(entry),
        )
    )


def event(kind: envelope.EventKind, **detail: int) -> bytes:
    return envelope.encode(FeedEvent(kind=kind, at_ns=1, connection_id="c", detail=detail))


def dead(reason: str = "not a frame") -> bytes:
    return envelope.encode(DeadLetter(reason=reason, at_ns=1, connection_id="c", data_base64="eA=="))
