"""Bytes of the socket → `Frame`. Pure: no clock, no state, no I/O."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ingestor.exchange import messages as wire
from ingestor.exchange.clock import rfc3339_to_ns

_Sequence = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
#: Names, times and what an error says end up in messages of ours, which a broker refuses over 1 MB.
_Short = Annotated[str, msgspec.Meta(max_length=64)]
_MAX_ERROR_CHARACTERS = 500


class FrameError(ValueError):
    """Bytes that are no frame of the exchange's protocol.

    Attributes:
        reason: one line for people.
        sequence_num: the frame's number, where it could still be read.
    """

    def __init__(self, reason: str, sequence_num: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sequence_num = sequence_num


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    # `client_id` is documented and never sent: like any other field that is not named here it is let pass.
    channel: _Short | None = None
    timestamp: _Short | None = None
    sequence_num: _Sequence | None = None
    # Raw cannot be optional in msgspec; empty bytes, which no JSON value is, stand for an absent field.
    events: msgspec.Raw = msgspec.Raw(b"")
    type: msgspec.Raw = msgspec.Raw(b"")
    message: msgspec.Raw = msgspec.Raw(b"")


class _Product(msgspec.Struct, frozen=True, gc=False):
    product_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


_envelope = msgspec.json.Decoder(_Envelope)
_product = msgspec.json.Decoder(_Product)
_events: dict[str, msgspec.json.Decoder[Any]] = {
    wire.TICKER: msgspec.json.Decoder(tuple[wire.TickerEvent, ...]),
    wire.HEARTBEATS: msgspec.json.Decoder(tuple[wire.HeartbeatEvent, ...]),
    wire.TRADES: msgspec.json.Decoder(tuple[wire.TradesEvent, ...]),
    wire.BOOK: msgspec.json.Decoder(tuple[wire.BookEvent, ...]),
    wire.CANDLES: msgspec.json.Decoder(tuple[wire.CandlesEvent, ...]),
    wire.SUBSCRIPTIONS: msgspec.json.Decoder(tuple[wire.SubscriptionsEvent, ...]),
}


def parse_frame(data: bytes | str) -> wire.Frame:
    """Read one frame of any channel.

    A frame of a channel unknown to us is a `Frame` with ``known=False`` and no events: it has a number and a
    time, which the sequence check and the watermark need. The exchange's error message is a `Frame` of
    channel ``"error"``.

    Raises:
        FrameError: not UTF-8, not JSON, not an envelope, or events of another shape than the channel's.
    """
    if isinstance(data, bytes) and not data.isascii():
        # msgspec skips over raw parts without looking at their encoding.
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise FrameError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        envelope = _envelope.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
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
    try:
        event_time_ns = rfc3339_to_ns(envelope.timestamp)
    except ValueError as error:
        raise FrameError(f"{channel}: timestamp: {error}", sequence_num) from None
    decoder = _events.get(channel)
    if decoder is None:
        return wire.Frame(
            channel=channel, event_time_ns=event_time_ns, sequence_num=sequence_num, known=False
        )
    if not bytes(envelope.events):
        raise FrameError(f"{channel}: no events", sequence_num)
    try:
        events = decoder.decode(envelope.events)
    except (msgspec.DecodeError, RecursionError) as error:
        raise FrameError(f"{channel}: events: {error}", sequence_num) from None
    return wire.Frame(channel=channel, event_time_ns=event_time_ns, sequence_num=sequence_num, events=events)


def product_of(entry: msgspec.Raw) -> str:
    """Name the product of a ticker entry or a trade.

    Raises:
        FrameError: the entry is no object or names no product.
    """
    try:
        return _product.decode(entry).product_id
    except (msgspec.DecodeError, RecursionError) as error:
        raise FrameError(f"entry: {error}") from None


def _text(raw: msgspec.Raw) -> str:
    if not bytes(raw):
        return "(no message)"
    value = msgspec.json.decode(raw)
    text = value if isinstance(value, str) else bytes(raw).decode()
    return text[:_MAX_ERROR_CHARACTERS]
