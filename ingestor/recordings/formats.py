"""The text formats of recordings: how a line of each becomes a frame.

Every format has a fast path (a typed msgspec decoder that reads only the fields needed, decimal strings
straight into floats) and an exact path for the lines that the fast one refuses: there a price that is no
number becomes NaN, to be rejected and counted by `core.market.cleaning`, and a line that is no frame at all
is refused with its reason.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec

from ingestor.exchange.messages import BOOK, CANDLES, ERROR, HEARTBEATS, SUBSCRIPTIONS, TICKER, TRADES
from ingestor.recordings.lines import RecordingError, iter_line_blocks

NO_SEQUENCE = -1
KNOWN_CHANNELS = frozenset({TICKER, HEARTBEATS, TRADES, BOOK, CANDLES, SUBSCRIPTIONS, ERROR})
_MAX_INT64 = 2**63 - 1
_MAX_ENTRIES = 2**15 - 1
#: A file none of whose first lines is a frame is a file of something else.
_PROBED_LINES = 200

_SequenceNum = Annotated[int, msgspec.Meta(ge=0, le=_MAX_INT64)]


class Ticker(msgspec.Struct, gc=False):
    """Needed fields of one entry of the ticker channel; NaN where a number is absent."""

    product_id: str
    price: float = math.nan
    best_bid: float = math.nan
    best_ask: float = math.nan
    best_bid_quantity: float = math.nan
    best_ask_quantity: float = math.nan


class Event(msgspec.Struct, gc=False):
    """One event of a frame: `tickers` of the channel ticker, `trades` of market_trades, else empty."""

    type: str = ""
    tickers: Annotated[tuple[Ticker, ...], msgspec.Meta(max_length=_MAX_ENTRIES)] = ()
    trades: tuple[msgspec.Raw, ...] = ()


class Frame(msgspec.Struct, gc=False):
    """The envelope every frame of the exchange comes in."""

    channel: str
    timestamp: str
    sequence_num: _SequenceNum
    events: Annotated[tuple[Event, ...], msgspec.Meta(max_length=_MAX_ENTRIES)]


class LineFormat(Protocol):
    """One recognised text format."""

    name: str

    def decode(self, line: bytes, /) -> Frame | None:
        """Decode the line's frame; None for a line of the recorder itself. Raises msgspec.MsgspecError."""
        ...

    def decode_exact(self, line: bytes, /) -> Frame | None:
        """Decode like `decode`, slowly and leniently. Raises ValueError with the reason."""
        ...


class VerbatimFrames:
    """The exchange's frames, one a line."""

    name = "verbatim frames"

    def __init__(self) -> None:
        self.decode = msgspec.json.Decoder(Frame, strict=False).decode

    def decode_exact(self, line: bytes) -> Frame | None:
        """Decode the frame, tolerant of single unreadable numbers."""
        return _frame(_json_object(line))


class _ReceivedFrame(msgspec.Struct, gc=False):
    frame: Frame


class ReceivedFrames:
    """`{"received_at": …, "frame": {…}}` lines."""

    name = "received_at/frame lines"

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(_ReceivedFrame, strict=False).decode

    def decode(self, line: bytes) -> Frame | None:
        """Decode the frame inside."""
        return self._decode(line).frame

    def decode_exact(self, line: bytes) -> Frame | None:
        """Decode the frame inside, tolerant of single unreadable numbers."""
        return _frame(_member(_json_object(line), "frame", dict))


class _FlatLine(msgspec.Struct, gc=False):
    product_id: str
    timestamp: str = ""
    ws_timestamp: str = ""
    event_type: str = ""
    sequence_num: _SequenceNum | None = None
    price: float = math.nan
    best_bid: float = math.nan
    best_ask: float = math.nan
    best_bid_quantity: float = math.nan
    best_ask_quantity: float = math.nan
    best_bid_qty: float = math.nan
    best_ask_qty: float = math.nan


class FlattenedTickers:
    """One ticker entry a line, in both spellings that recorders have used for sizes and times."""

    name = "flattened ticker lines"

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(_FlatLine, strict=False).decode

    def decode(self, line: bytes) -> Frame | None:
        """Return a frame with this one entry."""
        return _unflatten(self._decode(line))

    def decode_exact(self, line: bytes) -> Frame | None:
        """Return a frame with this one entry, tolerant of single unreadable numbers."""
        found = _json_object(line)
        sequence = found.get("sequence_num")
        flat = _FlatLine(_member(found, "product_id", str))
        flat.sequence_num = None if sequence is None else _sequence_num(sequence)
        for name in _FLAT_TEXTS:
            setattr(flat, name, "" if found.get(name) is None else _member(found, name, str))
        for name in _FLAT_NUMBERS:
            setattr(flat, name, _number(found.get(name)))
        return _unflatten(flat)


_FLAT_TEXTS = ("timestamp", "ws_timestamp", "event_type")
_FLAT_NUMBERS = tuple(
    name for name in _FlatLine.__struct_fields__ if name not in ("product_id", "sequence_num", *_FLAT_TEXTS)
)


def _unflatten(line: _FlatLine) -> Frame:
    bid_size, ask_size = line.best_bid_quantity, line.best_ask_quantity
    ticker = Ticker(
        line.product_id,
        line.price,
        line.best_bid,
        line.best_ask,
        line.best_bid_qty if math.isnan(bid_size) else bid_size,
        line.best_ask_qty if math.isnan(ask_size) else ask_size,
    )
    sequence = NO_SEQUENCE if line.sequence_num is None else line.sequence_num
    return Frame(TICKER, line.timestamp or line.ws_timestamp, sequence, (Event(line.event_type, (ticker,)),))


class SessionLine(msgspec.Struct, gc=False):
    """One line of a session log; `ts` in seconds since 1970."""

    t: str
    conn: str = ""
    ts: float = math.nan
    data: str = ""


class SessionLog:
    """A recorder's log of a whole session: `{"t": "connect" | "send" | "recv" | …, "conn": …, "data": "…"}`.

    Attributes:
        connection: Name of the connection of the frame decoded last.
        holds_opening: Whether the log contains this connection's opening, so that its numbers begin at 0.
    """

    name = "session log"

    def __init__(self) -> None:
        self._decode_line = msgspec.json.Decoder(SessionLine).decode
        self._decode_frame = msgspec.json.Decoder(Frame, strict=False).decode
        self._connects: Counter[str] = Counter()
        self.connection = ""
        self.holds_opening = False

    def decode(self, line: bytes) -> Frame | None:
        """Decode the received frame; None for lines that did not come from the exchange's socket."""
        entry = self.received(line)
        return None if entry is None else self._decode_frame(entry.data)

    def decode_exact(self, line: bytes) -> Frame | None:
        """Decode like `decode`, tolerant of single unreadable numbers."""
        found = _json_object(line)
        if found.get("t") != "recv":
            _member(found, "t", str)
            return None
        self._note(SessionLine("recv", _member(found, "conn", str)))
        return _frame(_json_object(_member(found, "data", str).encode()))

    def received(self, line: bytes) -> SessionLine | None:
        """Return the line, where it is a received frame. Raises msgspec.MsgspecError."""
        entry = self._decode_line(line)
        self._note(entry)
        return entry if entry.t == "recv" else None

    def _note(self, entry: SessionLine) -> None:
        if entry.t == "connect":
            self._connects[entry.conn] += 1
        elif entry.t == "recv":
            count = self._connects[entry.conn]
            self.connection = entry.conn if count <= 1 else f"{entry.conn}#{count}"
            self.holds_opening = count > 0


def recognise(path: Path) -> LineFormat:
    """Detect the format of a text recording by its first lines.

    Raises:
        RecordingError: The file is empty, unreadable, or none of its first 200 lines has a known format.
    """
    first_reason = ""
    probed = 0
    for lines in iter_line_blocks(path):
        for line in lines:
            if not line.strip():
                continue
            probed += 1
            try:
                return _format_of(_json_object(line))
            except ValueError as error:
                first_reason = first_reason or f"line {probed}: {error}"
            if probed == _PROBED_LINES:
                break
        if probed == _PROBED_LINES:
            break
    if not probed:
        raise RecordingError(f"{path}: empty recording")
    raise RecordingError(f"{path}: no recording of the exchange's feed ({first_reason})")


def _format_of(found: dict[str, Any]) -> LineFormat:
    if isinstance(found.get("frame"), dict):
        return ReceivedFrames()
    if isinstance(found.get("t"), str) and found.keys() & {"ts", "conn", "format"}:
        return SessionLog()
    if "channel" in found and isinstance(found.get("events"), list):
        return VerbatimFrames()
    if isinstance(found.get("product_id"), str) and found.keys() & {"best_bid", "best_ask", "price"}:
        return FlattenedTickers()
    raise ValueError("neither a frame of the exchange nor a line of a known recorder")


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line.decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _frame(found: dict[str, Any]) -> Frame:
    if "channel" not in found and found.get("type") == ERROR:
        return Frame(ERROR, "", NO_SEQUENCE, ())
    channel = _member(found, "channel", str)
    events = _list_of_objects(found, "events")
    return Frame(
        channel,
        _member(found, "timestamp", str),
        _sequence_num(found.get("sequence_num")),
        tuple(_EVENTS[channel](event) for event in events) if channel in _EVENTS else (),
    )


def _ticker_event(found: dict[str, Any]) -> Event:
    return Event(_kind(found), tuple(_ticker(entry) for entry in _list_of_objects(found, "tickers")))


def _trades_event(found: dict[str, Any]) -> Event:
    entries = found.get("trades")
    trades = entries if isinstance(entries, list) else []
    return Event(_kind(found), trades=tuple(msgspec.Raw(msgspec.json.encode(entry)) for entry in trades))


#: By channel: how an event of it is read.
_EVENTS = {TICKER: _ticker_event, TRADES: _trades_event}


def _kind(found: dict[str, Any]) -> str:
    kind = found.get("type", "")
    if not isinstance(kind, str):
        raise ValueError("an event's type is no text")
    return kind


def _ticker(found: dict[str, Any]) -> Ticker:
    return Ticker(
        _member(found, "product_id", str),
        _number(found.get("price")),
        _number(found.get("best_bid")),
        _number(found.get("best_ask")),
        _number(found.get("best_bid_quantity")),
        _number(found.get("best_ask_quantity")),
    )


def _member(found: dict[str, Any], name: str, type_: type) -> Any:
    value = found.get(name)
    if not isinstance(value, type_):
        raise ValueError(f"{name} is missing" if value is None else f"{name} is no {_TYPE_NAMES[type_]}")
    return value


_TYPE_NAMES: dict[type, str] = {str: "text", dict: "object", list: "list"}


def _list_of_objects(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    entries = _member(found, name, list)
    if len(entries) > _MAX_ENTRIES:
        raise ValueError(f"{name} holds more than {_MAX_ENTRIES} entries")
    if not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{name} holds something that is no object")
    return entries


def _sequence_num(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_INT64:
        raise ValueError("sequence_num is missing" if value is None else "sequence_num is no count")
    return value


def _number(value: object) -> float:
    """Return the number, or NaN: `core.market.cleaning` judges and counts unusable quotes."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
