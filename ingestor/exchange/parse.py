"""Bytes of the socket → `Frame`. Pure: no clock, no state, no I/O.

Documented frames take one typed decode per level. Only parts that the typed decoders refuse are read again,
as leniently as possible, and differences are named (`ingestor.exchange.drift`): drift is kept and reported,
never a reason to lose a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ingestor.errors import CryptovolError
from ingestor.exchange import drift
from ingestor.exchange import messages as wire
from ingestor.exchange.clock import rfc3339_to_ns
from ingestor.exchange.reasons import printable

_MAX_ERROR_CHARACTERS = 500
#: msgspec's own errors and the nesting that Python's stack does not carry.
_ERRORS = (msgspec.DecodeError, RecursionError)


class FrameError(CryptovolError, ValueError):
    """Bytes that are not a frame of the exchange's protocol.

    Attributes:
        reason: one line for people, safe to print.
        sequence_num: the frame's number, where it could still be read.
    """

    def __init__(self, reason: str, sequence_num: int | None = None) -> None:
        self.reason = printable(reason)
        super().__init__(self.reason)
        self.sequence_num = sequence_num


class _AnyEnvelope(msgspec.Struct, frozen=True, gc=False):
    channel: wire.Short | None = None
    timestamp: wire.Short | None = None
    sequence_num: wire.SequenceNum | None = None
    # Raw cannot be optional in msgspec; empty bytes, which are not JSON, mean an absent field.
    events: msgspec.Raw = msgspec.Raw(b"")
    type: msgspec.Raw = msgspec.Raw(b"")
    message: msgspec.Raw = msgspec.Raw(b"")


class _AnyEntry(msgspec.Struct, frozen=True, gc=False):
    product_id: wire.Name


_envelope = msgspec.json.Decoder(wire.Envelope).decode
_any_envelope = msgspec.json.Decoder(_AnyEnvelope).decode
_any_entry = msgspec.json.Decoder(_AnyEntry).decode
_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _list_decoder(of: Any) -> Any:
    return msgspec.json.Decoder(list[of]).decode


_events = {channel: _list_decoder(part.event) for channel, part in wire.CHANNELS.items()}
#: Checking every update of the book would halve the speed of the whole feed for data that are not recorded.
BOOK_CHECKED_EVERY = 16
_book_unread = _list_decoder(wire.BookEventUnread)
#: Channels whose entries are recorded: they need at least these fields.
_any_events = {
    wire.TICKER: _list_decoder(wire.AnyTickerEvent),
    wire.TRADES: _list_decoder(wire.AnyTradesEvent),
}
_entry = {
    wire.TICKER: msgspec.json.Decoder(wire.Ticker).decode,
    wire.TRADES: msgspec.json.Decoder(wire.Trade).decode,
}


def parse_frame(data: bytes | str) -> wire.Frame:
    """Read one frame of any channel.

    A frame of a channel unknown to us is a `Frame` with ``known=False`` and no events: it has a number and a
    time, which the sequence check and the watermark need. The exchange's error message is a `Frame` of
    channel ``"error"``. Of ``l2_data`` every sixteenth frame is checked down to its updates.

    Raises:
        FrameError: not UTF-8, not JSON, not an envelope, events that are no array, or events of ``ticker``
            and ``market_trades`` whose entries cannot be placed.
    """
    if isinstance(data, bytes) and not data.isascii():
        # msgspec skips over raw parts without checking their encoding.
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise FrameError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        envelope = _envelope(data)
    except _ERRORS:
        return _parse_leniently(data)
    return _frame(envelope.channel, envelope.timestamp, envelope.sequence_num, envelope.events)


def read_entry(channel: str, entry: msgspec.Raw) -> tuple[str, tuple[str, ...]]:
    """Return the product of an entry of ``ticker`` or ``market_trades``, and its differences.

    Raises:
        FrameError: the entry is not an object or has no product.
    """
    try:
        return _entry[channel](entry).product_id, ()
    except _ERRORS:
        return product_of(entry), drift.in_entry(channel, entry)


def product_of(entry: msgspec.Raw) -> str:
    """Return the product of a ticker entry or a trade; other fields are ignored.

    Raises:
        FrameError: the entry is not an object or has no product.
    """
    try:
        return _any_entry(entry).product_id
    except _ERRORS as error:
        raise FrameError(f"entry: {error}") from None


def _parse_leniently(data: bytes | str) -> wire.Frame:
    try:
        envelope = _any_envelope(data)
    except _ERRORS as error:
        raise FrameError(f"not a frame: {error}") from None
    channel, sequence_num = envelope.channel, envelope.sequence_num
    if channel is None:
        if bytes(envelope.type) == b'"error"':
            return wire.Frame(
                channel=wire.ERROR, event_time_ns=0, sequence_num=-1, message=_text(envelope.message)
            )
        raise FrameError("not a frame: no channel", sequence_num)
    if sequence_num is None:
        raise FrameError(f"{channel}: no sequence_num")
    if envelope.timestamp is None:
        raise FrameError(f"{channel}: no timestamp", sequence_num)
    known = channel in wire.CHANNELS
    if known and not bytes(envelope.events):
        raise FrameError(f"{channel}: no events", sequence_num)
    found = drift.in_frame(channel, data) if known else ()
    return _frame(channel, envelope.timestamp, sequence_num, envelope.events, found)


def _frame(
    channel: str, timestamp: str, sequence_num: int, raw_events: msgspec.Raw, found: tuple[str, ...] = ()
) -> wire.Frame:
    try:
        event_time_ns = rfc3339_to_ns(timestamp)
    except ValueError as error:
        raise FrameError(f"{channel}: timestamp: {error}", sequence_num) from None
    decode = _events.get(channel)
    if decode is None:
        return wire.Frame(
            channel=channel, event_time_ns=event_time_ns, sequence_num=sequence_num, known=False
        )
    if channel == wire.BOOK and sequence_num % BOOK_CHECKED_EVERY:
        decode = _book_unread
    try:
        events = decode(raw_events)
    except _ERRORS:
        events = _read_leniently(channel, raw_events, sequence_num)
        found += drift.in_events(channel, raw_events)
    return wire.Frame(
        channel=channel, event_time_ns=event_time_ns, sequence_num=sequence_num, events=events, drift=found
    )


def _read_leniently(channel: str, raw_events: msgspec.Raw, sequence_num: int) -> Sequence[wire.Event]:
    decode = _any_events.get(channel)
    try:
        if decode is not None:
            return decode(raw_events)
        _array(raw_events)
    except _ERRORS as error:
        raise FrameError(f"{channel}: events: {error}", sequence_num) from None
    # These channels are not recorded; the frame and its time still count.
    return ()


def _text(raw: msgspec.Raw) -> str:
    if not bytes(raw):
        return "(no message)"
    try:
        text = msgspec.json.decode(raw, type=str)
    except _ERRORS:
        text = bytes(raw).decode()
    return printable(text[:_MAX_ERROR_CHARACTERS])
