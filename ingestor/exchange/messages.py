"""The exchange's messages as they stand on the wire (Coinbase Advanced Trade), typed with msgspec.

What is kept whole stays `msgspec.Raw`: a ticker entry or a trade reaches raw storage byte for byte, so a
field that the exchange adds tomorrow survives. `ingestor.exchange.parse` reads these messages,
`ingestor.feed` acts.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

#: Channels as the frames name them (``level2`` is subscribed to and arrives as ``l2_data``).
TICKER, HEARTBEATS, TRADES, BOOK, CANDLES, SUBSCRIPTIONS, ERROR = (
    "ticker",
    "heartbeats",
    "market_trades",
    "l2_data",
    "candles",
    "subscriptions",
    "error",
)

_EventType = Annotated[str, msgspec.Meta(max_length=64)]


class TickerEvent(msgspec.Struct, frozen=True, gc=False):
    """One event of the ``ticker`` channel; entries untouched."""

    type: _EventType
    tickers: list[msgspec.Raw]


class TradesEvent(msgspec.Struct, frozen=True, gc=False):
    """One event of ``market_trades``, newest trade first; a snapshot is history, not new trades."""

    type: _EventType
    trades: list[msgspec.Raw]


class HeartbeatEvent(msgspec.Struct, frozen=True, gc=False):
    """One event of ``heartbeats``; the counter has been text, `current_time` has had three formats."""

    heartbeat_counter: int | str
    current_time: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def counter(self) -> int:
        """The counter as a number, whichever way it was written.

        Raises:
            ValueError: text that is no number.
        """
        return int(self.heartbeat_counter)


class BookEvent(msgspec.Struct, frozen=True, gc=False):
    """One event of ``l2_data``; its updates untouched (a snapshot passes 4 MiB)."""

    type: str
    product_id: str
    updates: msgspec.Raw


class CandlesEvent(msgspec.Struct, frozen=True, gc=False):
    """One event of ``candles``; candles untouched."""

    type: str
    candles: list[msgspec.Raw]


class SubscriptionsEvent(msgspec.Struct, frozen=True, gc=False):
    """The full current set after each (un)subscribe: channel → products."""

    subscriptions: dict[str, list[str]]


Event = TickerEvent | TradesEvent | HeartbeatEvent | BookEvent | CandlesEvent | SubscriptionsEvent


class Frame(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One frame: its place in the connection, its time, its events.

    Attributes:
        channel: the channel's name; ``"error"`` for the exchange's error message.
        event_time_ns: the frame's ``timestamp``, ns UTC; 0 for an error, which has none.
        sequence_num: place in the connection, over all channels, from 0; -1 for an error, which has none.
        events: typed by channel; empty for an unknown channel and for an error.
        message: text of an error.
        known: whether the channel is one of this module's.
    """

    channel: str
    event_time_ns: int
    sequence_num: int
    events: tuple[Event, ...] = ()
    message: str = ""
    known: bool = True


class Ticker(msgspec.Struct, frozen=True, gc=False):
    """What a ticker entry says about the present quote: decimal text, None where absent."""

    product_id: str
    price: str | None = None
    best_bid: str | None = None
    best_ask: str | None = None
    best_bid_quantity: str | None = None
    best_ask_quantity: str | None = None


class Trade(msgspec.Struct, frozen=True, gc=False):
    """One trade; `side` is the maker's side as the exchange gives it, `time` the trade's own."""

    product_id: str
    trade_id: str
    price: str
    size: str
    side: str
    time: str


class Subscribe(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="subscribe"):
    """What the client sends: one channel a message; ``heartbeats`` names no products."""

    channel: str
    product_ids: tuple[str, ...] = ()
