"""Kafka messages of cryptovol: typed, versioned JSON.

The exchange's own entry travels inside as raw JSON (`msgspec.Raw`), byte for byte, so that a field the
exchange adds tomorrow reaches raw storage without a change here.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

SCHEMA_VERSION = 1

#: Topic names without the configured prefix.
TICKS, TRADES, EVENTS, DEAD = "ticks.raw", "trades.raw", "feed.events", "feed.dead"
TOPICS = (TICKS, TRADES, EVENTS, DEAD)
#: Features of every bar: derived data, so the archive does not store them.
FEATURES_TOPIC = "ticks.features"
ALL_TOPICS = (*TOPICS, FEATURES_TOPIC)

EventKind = Literal[
    "connected",
    "subscribed",
    "disconnected",
    "gap",
    "stale",
    "clock_skew",
    "protocol_drift",
    "resumed",
    "checkpoint",
    "log_recreated",
]


class _Positioned(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    schema_version: int = SCHEMA_VERSION
    product_id: str
    event_time_ns: int
    received_at_ns: int
    connection_id: str
    sequence_num: int
    event_index: int
    entry_index: int
    event_type: str


class TickMessage(_Positioned, frozen=True, kw_only=True, gc=False):
    """One entry of the exchange's ``ticker`` channel, and its position in the connection."""

    ticker: msgspec.Raw


class TradeMessage(_Positioned, frozen=True, kw_only=True, gc=False):
    """One trade of the exchange's ``market_trades`` channel; `event_time_ns` is the frame's time."""

    trade: msgspec.Raw


class FeedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to the feed: a connection, a gap, a checkpoint. `at_ns` is wall clock."""

    schema_version: int = SCHEMA_VERSION
    kind: EventKind
    at_ns: int
    connection_id: str
    event_time_ns: int | None = None
    detail: dict[str, Any] = msgspec.field(default_factory=dict)


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that could not be read, with the reason."""

    schema_version: int = SCHEMA_VERSION
    reason: str
    at_ns: int
    connection_id: str
    sequence_num: int | None = None
    data_base64: str


class FeatureMessage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Features of one product's bar.

    Its key is (product, bar end, feature version); of several messages with one key the highest `revision`
    counts, and of equal ones the last. `provisional` says that the product was in a gap, or the feed silent,
    when it was published. `reason` is the name of the core's reason code, ``ok`` where the row is `valid`. A
    feature without a value is null.
    """

    schema_version: int = SCHEMA_VERSION
    product_id: str
    bar_end_ns: int
    feature_version: str
    revision: int
    provisional: bool
    valid: bool
    reason: str
    values: dict[str, float | None]


#: Begins the key of a record of `closing_message`; no product of the exchange begins so.
PROGRESS_MARK = "#"


def closing_message(partition: int, closed_until_ns: int, feature_version: str) -> FeatureMessage:
    """Return the record that says how far a partition of ticks.raw has been computed.

    The rows of all bars that end by then stand before it in the log. So a row that is not there will not
    come, unless a late tick brings it. It has the form of a row, of a product and a version that no row has:
    readers that know nothing of it leave it out.

    Args:
        partition: of ticks.raw.
        closed_until_ns: event time, UTC nanoseconds.
        feature_version: of the rows.
    """
    return FeatureMessage(
        product_id=f"{PROGRESS_MARK}{partition}",
        bar_end_ns=closed_until_ns,
        feature_version=f"{PROGRESS_MARK}{feature_version}",
        revision=0,
        provisional=False,
        valid=False,
        reason="closed",
        values={},
    )


def closed_partition(message: FeatureMessage) -> int | None:
    """Return the partition that a record of `closing_message` is of, closed until `bar_end_ns`.

    None where the message is a row.
    """
    is_row = not message.product_id.startswith(PROGRESS_MARK)
    return None if is_row else int(message.product_id.removeprefix(PROGRESS_MARK))


Message = TickMessage | TradeMessage | FeedEvent | DeadLetter

#: One reusable encoder; `encode(message)` returns the Kafka value.
encode = msgspec.json.Encoder().encode

DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    TICKS: msgspec.json.Decoder(TickMessage),
    TRADES: msgspec.json.Decoder(TradeMessage),
    EVENTS: msgspec.json.Decoder(FeedEvent),
    DEAD: msgspec.json.Decoder(DeadLetter),
    FEATURES_TOPIC: msgspec.json.Decoder(FeatureMessage),
}
