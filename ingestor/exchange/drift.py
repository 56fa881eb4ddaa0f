"""Names of differences from the documented protocol: the slow path, where a typed decoder refused.

A name is stable and contains no value that changes from frame to frame, so that it can be counted:
``ticker: unknown field 'foo'``, ``ticker: missing field 'best_bid'``,
``market_trades: field 'size' is a number, not text``. Fields of the event and of the frame itself say so:
``ticker: unknown field 'foo' of the event``.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from ingestor.exchange import messages as wire
from ingestor.exchange.reasons import quoted

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_elements = msgspec.json.Decoder(list[msgspec.Raw])
_text = msgspec.json.Decoder(str)
_ERRORS = (msgspec.DecodeError, RecursionError)

_TEXT, _NUMBER, _OBJECT, _ARRAY = "text", "a number", "an object", "an array"
_KIND_BY_BYTE = {
    b'"': _TEXT,
    b"{": _OBJECT,
    b"[": _ARRAY,
    b"t": "true or false",
    b"f": "true or false",
    b"n": "null",
}
# The envelope leaves its events undecoded; they must be an array.
_KIND_BY_TYPE = {str: _TEXT, int: _NUMBER, float: _NUMBER, list: _ARRAY, dict: _OBJECT, msgspec.Raw: _ARRAY}


@dataclass(frozen=True)
class Field:
    """One documented field.

    Attributes:
        kinds: kinds of JSON value it may have, as `drift` names them.
        values: the texts it may be; empty where any will do.
        required: whether every message has it.
    """

    kinds: tuple[str, ...]
    values: tuple[str, ...] = ()
    required: bool = True


def documented(part: type[wire.Documented]) -> dict[str, Field]:
    """List the documented fields of a part of a frame, in the order of the wire."""
    hints = typing.get_type_hints(part)
    return {field.name: _field(hints[field.name], field.required) for field in msgspec.structs.fields(part)}


def in_frame(channel: str, data: bytes | str) -> tuple[str, ...]:
    """Return the differences in the envelope of a frame of a known channel."""
    return tuple(_differences(channel, msgspec.Raw(data), wire.Envelope, " of the frame"))


def in_events(channel: str, events: msgspec.Raw) -> tuple[str, ...]:
    """Return the differences in a frame's events, and in their entries where these are not kept whole.

    Raises:
        msgspec.DecodeError: `events` is not an array.
    """
    part = wire.CHANNELS[channel]
    found: list[str] = []
    for event in _elements.decode(events):
        found += _differences(channel, event, part.event, " of the event")
        if part.entry is not None and part.entry not in (wire.Ticker, wire.Trade):
            for entry in _entries(event, part.entries):
                found += _differences(channel, entry, part.entry, "")
    return tuple(found) or (f"{channel}: an event of another shape",)


def in_entry(channel: str, entry: msgspec.Raw) -> tuple[str, ...]:
    """Return the differences in an entry of ``ticker`` or ``market_trades`` that the decoder refused."""
    part = wire.CHANNELS[channel].entry
    found = () if part is None else tuple(_differences(channel, entry, part, ""))
    return found or (f"{channel}: an entry of another shape",)


def _entries(event: msgspec.Raw, name: str | None) -> list[msgspec.Raw]:
    try:
        return _elements.decode(_fields.decode(event).get(name or "", msgspec.Raw(b"[]")))
    except _ERRORS:
        return []  # reported as a field of another kind


def _differences(channel: str, raw: msgspec.Raw, part: type[wire.Documented], of: str) -> Iterator[str]:
    expected = _DOCUMENTED[part]
    try:
        fields = _fields.decode(raw)
    except _ERRORS:
        yield f"{channel}: {of.removeprefix(' of the ') or 'entry'} is {_kind(raw)}, not an object"
        return
    for name in fields:
        if name not in expected:
            yield f"{channel}: unknown field {quoted(name)}{of}"
    for name, field in expected.items():
        value = fields.get(name)
        if value is None:
            if field.required:
                yield f"{channel}: missing field '{name}'{of}"
        elif (kind := _kind(value)) not in field.kinds:
            yield f"{channel}: field '{name}'{of} is {kind}, not {' or '.join(field.kinds)}"
        elif field.values and (text := _text.decode(value)) not in field.values:
            yield f"{channel}: field '{name}'{of} is {quoted(text)}, not {' or '.join(field.values)}"


def _kind(raw: msgspec.Raw) -> str:
    return _KIND_BY_BYTE.get(bytes(raw)[:1], _NUMBER)


def _field(hint: object, required: bool) -> Field:
    if typing.get_origin(hint) is typing.Literal:
        return Field((_TEXT,), typing.get_args(hint), required)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = [_KIND_BY_TYPE[typing.get_origin(option) or option] for option in options]
    return Field(tuple(dict.fromkeys(kinds)), (), required)


_PARTS = (wire.Envelope, *(part.event for part in wire.CHANNELS.values()))
_ENTRIES = (part.entry for part in wire.CHANNELS.values() if part.entry is not None)
_DOCUMENTED = {part: documented(part) for part in (*_PARTS, *_ENTRIES)}
