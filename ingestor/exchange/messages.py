"""The exchange's wire messages (Coinbase Advanced Trade), typed with msgspec.

The structs here are the documented protocol, field for field: `docs/reference/protocol.md` is their list for
people, and `ingestor.exchange.drift` names whatever differs from them. What is kept whole stays
`msgspec.Raw`: a ticker entry or a trade reaches raw storage byte for byte, so a field that the exchange adds
tomorrow survives. `ingestor.exchange.parse` reads these messages, `ingestor.feed` acts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

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

#: Names, times and error texts are copied to Kafka messages, which a broker refuses over 1 MB.
Short = Annotated[str, msgspec.Meta(max_length=64)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
SequenceNum = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
EventType = Literal["snapshot", "update"]


class Documented(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A part of a frame with exactly the documented fields, in the order in which the exchange sends them."""


class Envelope(Documented, frozen=True, gc=False):
    """Fields of every frame; `client_id`, though documented, is absent from every real frame."""

    channel: Short
    timestamp: Short
    sequence_num: SequenceNum
    events: msgspec.Raw
    client_id: str = ""


class TickerEvent(Documented, frozen=True, gc=False):
    """One event of the ``ticker`` channel; entries untouched."""

    type: EventType
    tickers: list[msgspec.Raw]


class Ticker(Documented, frozen=True, gc=False):
    """One entry of ``ticker``: the product's present quote and its day, every value decimal text."""

    type: Literal["ticker"]
    product_id: Name
    price: str
    volume_24_h: str
    low_24_h: str
    high_24_h: str
    low_52_w: str
    high_52_w: str
    price_percent_chg_24_h: str
    best_bid: str
    best_ask: str
    best_bid_quantity: str
    best_ask_quantity: str


class TradesEvent(Documented, frozen=True, gc=False):
    """One event of ``market_trades``, newest trade first; a snapshot is history, not new trades."""

    type: EventType
    trades: list[msgspec.Raw]


class Trade(Documented, frozen=True, gc=False):
    """One trade; `side` is the maker's side as the exchange sends it, `time` the trade's own."""

    product_id: Name
    trade_id: str
    price: str
    size: str
    time: str
    side: Literal["BUY", "SELL"]


class HeartbeatEvent(Documented, frozen=True, gc=False):
    """One event of ``heartbeats``; the counter has been text, `current_time` has had three formats."""

    current_time: str | int | float
    heartbeat_counter: int | str

    @property
    def counter(self) -> int:
        """The counter as a number, whichever way it was written.

        Raises:
            ValueError: the text is not a number.
        """
        return int(self.heartbeat_counter)


class BookUpdate(Documented, frozen=True, gc=False):
    """One price level of ``l2_data``; a quantity of 0 removes it."""

    side: Literal["bid", "offer"]
    event_time: str
    price_level: str
    new_quantity: str


class BookEvent(Documented, frozen=True, gc=False):
    """One event of ``l2_data``; a snapshot passes 4 MiB."""

    type: EventType
    product_id: Name
    updates: list[BookUpdate]


class BookEventUnread(Documented, frozen=True, gc=False):
    """A `BookEvent` whose updates are skipped: they are not recorded, and are most of a feed's bytes."""

    type: EventType
    product_id: Name
    updates: msgspec.Raw


class Candle(Documented, frozen=True, gc=False):
    """One five-minute candle; `start` is in seconds since 1970 UTC."""

    start: str
    high: str
    low: str
    open: str
    close: str
    volume: str
    product_id: Name


class CandlesEvent(Documented, frozen=True, gc=False):
    """One event of ``candles``."""

    type: EventType
    candles: list[Candle]


class SubscriptionsEvent(Documented, frozen=True, gc=False):
    """The full current set after each (un)subscribe: channel → products."""

    subscriptions: dict[str, list[str]]


class AnyTickerEvent(msgspec.Struct, frozen=True, gc=False):
    """A `TickerEvent` with the fields that its entries need; other fields are ignored."""

    type: Short
    tickers: list[msgspec.Raw]


class AnyTradesEvent(msgspec.Struct, frozen=True, gc=False):
    """A `TradesEvent` with the fields that its trades need; other fields are ignored."""

    type: Short
    trades: list[msgspec.Raw]


class Part(msgspec.Struct, frozen=True):
    """Types of a channel's events and their entries.

    Attributes:
        event: one element of the frame's ``events``.
        entries: the event's field that lists entries; None where it has none.
        entry: one of these entries.
    """

    event: type[Documented]
    entries: str | None = None
    entry: type[Documented] | None = None


#: Every channel whose content is known here.
CHANNELS: dict[str, Part] = {
    TICKER: Part(TickerEvent, "tickers", Ticker),
    TRADES: Part(TradesEvent, "trades", Trade),
    HEARTBEATS: Part(HeartbeatEvent),
    SUBSCRIPTIONS: Part(SubscriptionsEvent),
    BOOK: Part(BookEvent, "updates", BookUpdate),
    CANDLES: Part(CandlesEvent, "candles", Candle),
}

Event = Documented | AnyTickerEvent | AnyTradesEvent


class Frame(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One frame: its place in the connection, its time, its events.

    Attributes:
        channel: the channel's name; ``"error"`` for the exchange's error message.
        event_time_ns: the frame's ``timestamp``, ns UTC; 0 for an error, which has none.
        sequence_num: place in the connection, over all channels, from 0; -1 for an error, which has none.
        events: typed by channel; empty for an unknown channel, for an error, and where a channel whose
            content is not recorded sends another shape.
        message: text of an error.
        known: whether the channel is one of this module's.
        drift: differences of envelope and events from the documented protocol, one name per finding
            (`ingestor.exchange.drift`); entries of tickers and trades are judged by `read_entry`.
    """

    channel: str
    event_time_ns: int
    sequence_num: int
    events: Sequence[Event] = ()
    message: str = ""
    known: bool = True
    drift: tuple[str, ...] = ()


class Subscribe(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="subscribe"):
    """A subscription of the client: one channel per message; ``heartbeats`` has no products."""

    channel: str
    product_ids: tuple[str, ...] = ()
