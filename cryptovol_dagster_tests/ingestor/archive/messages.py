"""Messages of the feed and of the scorer for tests of raw storage."""

from __future__ import annotations

import msgspec

from ingestor.envelope import (
    Contribution,
    DeadLetter,
    FeedEvent,
    ScoreMessage,
    TickMessage,
    TradeMessage,
    closing_score,
    encode,
)
from ingestor.times import NS

#: 2026-04-04 10:00:00 UTC
TEN_NS = 1_775_296_800 * NS
MINUTE_NS = 60 * NS

QUOTE = (
    b'{"product_id":"BTC-USD","price":"67000.01","best_bid":"67000.00","best_ask":"67000.02",'
    b'"best_bid_quantity":"0.5","best_ask_quantity":"1.25","new_field":[1, 2]}'
)
TRADE = (
    b'{"trade_id":"77","product_id":"BTC-USD","price":"67000.01","size":"0.002","side":"BUY",'
    b'"time":"2026-04-04T10:00:00.123456789Z"}'
)


def tick(
    time_ns: int = TEN_NS,
    sequence: int = 0,
    *,
    product: str = "BTC-USD",
    connection: str = "c1",
    entry: bytes = QUOTE,
) -> bytes:
    return encode(
        TickMessage(
            product_id=product,
            event_time_ns=time_ns,
            received_at_ns=time_ns + 5,
            connection_id=connection,
            sequence_num=sequence,
            event_index=0,
            entry_index=0,
            event_type="update",
            ticker=msgspec.Raw(entry),
        )
    )


def trade(time_ns: int = TEN_NS, sequence: int = 0, *, entry: bytes = TRADE) -> bytes:
    return encode(
        TradeMessage(
            product_id="BTC-USD",
            event_time_ns=time_ns,
            received_at_ns=time_ns + 5,
            connection_id="c1",
            sequence_num=sequence,
            event_index=0,
            entry_index=0,
            event_type="update",
            trade=msgspec.Raw(entry),
        )
    )


def event(
    kind: str,
    at_ns: int,
    connection: str = "c1",
    event_time_ns: int | None = None,
    offsets: dict[str, dict[str, int]] | None = None,
    logs: dict[str, str] | None = None,
) -> bytes:
    return encode(
        FeedEvent(
            kind=kind,  # pyright: ignore[reportArgumentType]
            at_ns=at_ns,
            connection_id=connection,
            event_time_ns=event_time_ns,
            detail=({} if offsets is None else {"offsets": offsets})
            | ({} if logs is None else {"logs": logs}),
        )
    )


def score(bar_end_ns: int = TEN_NS, revision: int = 0, *, product: str = "BTC-USD") -> bytes:
    """A flagged score, published 1 s after its bar."""
    return encode(
        ScoreMessage(
            chain="seconds",
            product_id=product,
            bar_end_ns=bar_end_ns,
            revision=revision,
            published_at_ns=bar_end_ns + NS,
            provisional=False,
            probability=0.75,
            reason="ok",
            flag=True,
            threshold=0.5,
            model="xgboost",
            model_as_of="2026-04-04-09:00",
            model_version="3",
            model_age_s=3_600.0,
            feature_version="f1",
            row_hash="abcd",
            contributions=[Contribution("rv_60", 1.5, 0.25)],
        )
    )


def closing(partition: int, closed_until_ns: int, *, chain: str = "seconds") -> bytes:
    """The scorer's record that a partition is scored until then, published 1 s later."""
    return encode(closing_score(chain, partition, closed_until_ns, closed_until_ns + NS))


def dead(at_ns: int) -> bytes:
    return encode(DeadLetter(reason="not JSON", at_ns=at_ns, connection_id="c1", data_base64="AAEC"))
