"""Kafka records → Arrow columns, one schema a topic.

A record that cannot be decoded is stored all the same, so that every offset is in raw storage: its
`schema_version` is `UNREADABLE`, its bytes stand base64-encoded in `payload`, and as event time it is given
the time of the record before it (a file's first record: the broker's timestamp). Its other columns are null.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingestor.archive.columns import column
from ingestor.envelope import (
    DEAD,
    DECODERS,
    EVENTS,
    SCORES_TOPIC,
    TICKS,
    TRADES,
    DeadLetter,
    FeedEvent,
    ScoreMessage,
)

UNREADABLE = -1

_KAFKA = [("kafka_partition", pa.int32()), ("kafka_offset", pa.int64()), ("schema_version", pa.int16())]
_POSITION = [
    ("product_id", pa.string()),
    ("event_time_ns", pa.int64()),
    ("received_at_ns", pa.int64()),
    ("connection_id", pa.string()),
    ("sequence_num", pa.int64()),
    ("event_index", pa.int16()),
    ("entry_index", pa.int16()),
    ("event_type", pa.string()),
]
_QUOTE_FIELDS = ("price", "best_bid", "best_ask", "best_bid_quantity", "best_ask_quantity")
_PAYLOAD = [("payload", pa.string())]

SCHEMAS: Mapping[str, pa.Schema] = {
    TICKS: pa.schema(_KAFKA + _POSITION + [(name, pa.float64()) for name in _QUOTE_FIELDS] + _PAYLOAD),
    TRADES: pa.schema(
        _KAFKA
        + _POSITION
        + [
            ("trade_id", pa.string()),
            ("price", pa.float64()),
            ("size", pa.float64()),
            ("side", pa.string()),
            ("trade_time_ns", pa.int64()),
        ]
        + _PAYLOAD
    ),
    EVENTS: pa.schema(
        [
            *_KAFKA,
            ("kind", pa.string()),
            ("at_ns", pa.int64()),
            ("connection_id", pa.string()),
            ("event_time_ns", pa.int64()),
            *_PAYLOAD,
        ]
    ),
    DEAD: pa.schema(
        [
            *_KAFKA,
            ("reason", pa.string()),
            ("at_ns", pa.int64()),
            ("connection_id", pa.string()),
            ("sequence_num", pa.int64()),
            *_PAYLOAD,
        ]
    ),
    SCORES_TOPIC: pa.schema(
        [
            *_KAFKA,
            ("chain", pa.string()),
            ("product_id", pa.string()),
            ("bar_end_ns", pa.int64()),
            ("revision", pa.int32()),
            ("published_at_ns", pa.int64()),
            ("provisional", pa.bool_()),
            ("probability", pa.float64()),
            ("reason", pa.string()),
            ("flag", pa.bool_()),
            ("threshold", pa.float64()),
            ("model", pa.string()),
            ("model_as_of", pa.string()),
            ("model_version", pa.string()),
            ("model_age_s", pa.float64()),
            ("feature_version", pa.string()),
            ("row_hash", pa.string()),
            ("episode", pa.string()),
            *_PAYLOAD,
        ]
    ),
}

#: Columns with few distinct values; the rest gains nothing from a dictionary.
DICTIONARY_COLUMNS = (
    *("product_id", "connection_id", "event_type", "side", "kind", "reason"),
    *("chain", "model", "model_as_of", "model_version", "feature_version", "episode"),
)
#: Columns whose differences are small.
DELTA_COLUMNS = (
    *("kafka_offset", "event_time_ns", "received_at_ns", "sequence_num", "trade_time_ns", "at_ns"),
    *("bar_end_ns", "published_at_ns"),
)


class _Quote(msgspec.Struct, gc=False):
    price: float | None = None
    best_bid: float | None = None
    best_ask: float | None = None
    best_bid_quantity: float | None = None
    best_ask_quantity: float | None = None


class _Trade(msgspec.Struct, gc=False):
    trade_id: str | None = None
    price: float | None = None
    size: float | None = None
    side: str | None = None
    time: str | None = None


# Not strict: the exchange writes its numbers as strings.
_QUOTE = msgspec.json.Decoder(_Quote, strict=False)
_TRADE = msgspec.json.Decoder(_Trade, strict=False)
# Field by field: one number outside of float64 must not cost the others.
_ENTRY = msgspec.json.Decoder(dict[str, msgspec.Raw])
_COLUMN_ERRORS = (msgspec.MsgspecError, pa.ArrowInvalid, OverflowError, UnicodeDecodeError, RecursionError)

_encode = msgspec.json.encode
_Columns = dict[str, Any]


def time_columns(topic: str) -> tuple[str, ...]:
    """Return the columns of a record's event time: the first that is not null counts."""
    own = {EVENTS: ("event_time_ns", "at_ns"), DEAD: ("at_ns",), SCORES_TOPIC: ("bar_end_ns",)}
    return own.get(topic, ("event_time_ns",))


def event_times(topic: str, columns: pa.RecordBatch | pa.Table) -> Any:
    """Return the event time (int64 ns) of each record, which determines its hour."""
    names = time_columns(topic)
    if len(names) == 1:
        return columns.column(names[0])
    return pc.call_function("coalesce", [columns.column(name) for name in names])


def to_batch(
    topic: str,
    partition: int,
    first_offset: int,
    values: Sequence[bytes | None],
    broker_time_ns: Callable[[int], int],
    previous_time_ns: int | None,
) -> pa.RecordBatch:
    """Decode records of consecutive offsets of one partition.

    Args:
        topic: one of `SCHEMAS`, without prefix.
        partition: the partition they came from.
        first_offset: offset of the first.
        values: the records' bytes.
        broker_time_ns: the broker's timestamp of the i-th record; asked for unreadable records only.
        previous_time_ns: event time of the record before the first in the same file, None at a file's start.

    Returns:
        One row a record in the columns of ``SCHEMAS[topic]``.
    """
    try:
        return _assemble(topic, partition, first_offset, len(values), _BUILDERS[topic](values))
    except (*_COLUMN_ERRORS, TypeError):  # TypeError: a record without a value
        if len(values) == 1:
            time_ns = broker_time_ns(0) if previous_time_ns is None else previous_time_ns
            return _assemble(topic, partition, first_offset, 1, _unreadable(topic, values[0], time_ns))
    # Something in there is unreadable: halving finds it.
    half = len(values) // 2
    left = to_batch(topic, partition, first_offset, values[:half], broker_time_ns, previous_time_ns)
    right = to_batch(
        topic,
        partition,
        first_offset + half,
        values[half:],
        lambda index: broker_time_ns(half + index),
        event_times(topic, left)[half - 1].as_py(),
    )
    return pa.Table.from_batches([left, right]).combine_chunks().to_batches()[0]


def _unreadable(topic: str, value: bytes | None, time_ns: int) -> _Columns:
    columns: _Columns = {name: [None] for name in SCHEMAS[topic].names}
    columns["schema_version"] = [UNREADABLE]
    columns[time_columns(topic)[-1]] = [time_ns]
    columns["payload"] = [None if value is None else base64.b64encode(value).decode()]
    return columns


def _assemble(
    topic: str, partition: int, first_offset: int, rows: int, columns: Mapping[str, Any]
) -> pa.RecordBatch:
    schema = SCHEMAS[topic]
    columns = {
        **columns,
        "kafka_partition": np.full(rows, partition, np.int32),
        "kafka_offset": np.arange(first_offset, first_offset + rows, dtype=np.int64),
    }
    arrays = [
        values if isinstance(values := columns[field.name], pa.Array) else column(values, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _tick_columns(values: Iterable[bytes]) -> _Columns:
    messages = [*map(DECODERS[TICKS].decode, values)]
    quotes = [_read_quote(message.ticker) for message in messages]
    columns = _position_columns(messages)
    columns["price"] = [quote.price for quote in quotes]
    columns["best_bid"] = [quote.best_bid for quote in quotes]
    columns["best_ask"] = [quote.best_ask for quote in quotes]
    columns["best_bid_quantity"] = [quote.best_bid_quantity for quote in quotes]
    columns["best_ask_quantity"] = [quote.best_ask_quantity for quote in quotes]
    columns["payload"] = [bytes(message.ticker) for message in messages]
    return columns


def _trade_columns(values: Iterable[bytes]) -> _Columns:
    messages = [*map(DECODERS[TRADES].decode, values)]
    columns = {**_position_columns(messages), **read_trades([message.trade for message in messages])}
    columns["payload"] = [bytes(message.trade) for message in messages]
    return columns


def read_trades(entries: Sequence[msgspec.Raw]) -> dict[str, Any]:
    """Return the columns of raw storage that are read from trades; null where one cannot be read.

    Args:
        entries: trades as the exchange sends them.
    """
    trades = [_read_trade(entry) for entry in entries]
    columns: dict[str, Any] = {
        name: [getattr(trade, name) for trade in trades] for name in ("trade_id", "price", "size", "side")
    }
    columns["trade_time_ns"] = _times([trade.time for trade in trades])
    return columns


def _event_columns(values: Iterable[bytes]) -> _Columns:
    events: list[FeedEvent] = [*map(DECODERS[EVENTS].decode, values)]
    return {
        "schema_version": [event.schema_version for event in events],
        "kind": [event.kind for event in events],
        "at_ns": [event.at_ns for event in events],
        "connection_id": [event.connection_id for event in events],
        "event_time_ns": [event.event_time_ns for event in events],
        "payload": [_encode(event.detail) for event in events],
    }


def _dead_columns(values: Iterable[bytes]) -> _Columns:
    letters: list[DeadLetter] = [*map(DECODERS[DEAD].decode, values)]
    return {
        "schema_version": [letter.schema_version for letter in letters],
        "reason": [letter.reason for letter in letters],
        "at_ns": [letter.at_ns for letter in letters],
        "connection_id": [letter.connection_id for letter in letters],
        "sequence_num": [letter.sequence_num for letter in letters],
        "payload": [letter.data_base64 for letter in letters],
    }


def _score_columns(values: Iterable[bytes]) -> _Columns:
    scores: list[ScoreMessage] = [*map(DECODERS[SCORES_TOPIC].decode, values)]
    names = [name for name in SCHEMAS[SCORES_TOPIC].names if name in ScoreMessage.__struct_fields__]
    columns: _Columns = {name: [getattr(score, name) for score in scores] for name in names}
    columns["payload"] = [_encode(score.contributions) for score in scores]
    return columns


_BUILDERS: Mapping[str, Callable[[Iterable[Any]], _Columns]] = {
    TICKS: _tick_columns,
    TRADES: _trade_columns,
    EVENTS: _event_columns,
    DEAD: _dead_columns,
    SCORES_TOPIC: _score_columns,
}


def _position_columns(messages: Sequence[Any]) -> _Columns:
    return {
        "schema_version": [message.schema_version for message in messages],
        "product_id": [message.product_id for message in messages],
        "event_time_ns": [message.event_time_ns for message in messages],
        "received_at_ns": [message.received_at_ns for message in messages],
        "connection_id": [message.connection_id for message in messages],
        "sequence_num": [message.sequence_num for message in messages],
        "event_index": [message.event_index for message in messages],
        "entry_index": [message.entry_index for message in messages],
        "event_type": [message.event_type for message in messages],
    }


def _read_quote(entry: msgspec.Raw) -> _Quote:
    try:
        return _QUOTE.decode(entry)
    except msgspec.ValidationError:
        fields = _fields(entry)
        return _Quote(*(_decimal(fields.get(name)) for name in _QUOTE_FIELDS))


def _read_trade(entry: msgspec.Raw) -> _Trade:
    try:
        return _TRADE.decode(entry)
    except msgspec.ValidationError:
        fields = _fields(entry)
        return _Trade(
            trade_id=_text(fields.get("trade_id")),
            price=_decimal(fields.get("price")),
            size=_decimal(fields.get("size")),
            side=_text(fields.get("side")),
            time=_text(fields.get("time")),
        )


def _fields(entry: msgspec.Raw) -> Mapping[str, Any]:
    try:
        return {name: _value(raw) for name, raw in _ENTRY.decode(entry).items()}
    except msgspec.ValidationError:
        return {}  # no object


def _value(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except msgspec.ValidationError:
        return None  # a number out of range


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _decimal(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _times(texts: list[str | None]) -> pa.Array:
    """Convert RFC 3339 texts to integer nanoseconds; null where one is absent or unreadable."""
    try:
        return _parse_times(texts)
    except pa.ArrowInvalid:
        return column([_time(text) for text in texts], pa.int64())


def _parse_times(texts: list[str | None]) -> pa.Array:
    return pc.cast(column(texts, pa.string()), pa.timestamp("ns", "UTC")).cast(pa.int64())


def _time(text: str | None) -> int | None:
    try:
        return _parse_times([text])[0].as_py()
    except pa.ArrowInvalid:
        return None
