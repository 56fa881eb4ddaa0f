"""One assigned partition: its rows so far, its clock, and the next offsets to read.

Belongs here: decoding records and deciding until when seconds may close. Does not belong here: Kafka clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from confluent_kafka import KafkaError, Message
from numpy.typing import NDArray

from cryptovol_dagster.core.features.live import LiveFeatures
from cryptovol_dagster.core.market.cleaning import TickCounts
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.lake.raw_ticks import tick_columns, trade_columns
from cryptovol_dagster.live.clock import PartitionClock
from cryptovol_dagster.live.progress import LiveProgress
from ingestor.archive.schema import to_batch
from ingestor.envelope import TICKS, TRADES


class Added(NamedTuple):
    """Content of a batch of records.

    Attributes:
        rows: ticks or trades.
        unreadable: records that are neither.
        is_news: whether anything was read; False where all records had been read before.
        restarted: whether another recording began.
    """

    rows: int = 0
    unreadable: int = 0
    is_news: bool = False
    restarted: bool = False


@dataclass
class Partition:
    """An assigned partition of ticks.raw, and the trades of the same products.

    Attributes:
        number: of the partition.
        state: its rows so far.
        clock: until when its ticks are complete.
        next_offset: of ticks.raw.
        next_trade: offset in trades.raw, which has the trades of the same products.
        trades_at_end: whether all trades in the log have been read.
        trades_until_ns: event time of the last one read; None before the first.
        until_ns: event time until which seconds may close, as `closing` returned it last.
        closed_until_ns: event time until which bars are closed, with rows or without; None before the first.
    """

    number: int
    state: LiveFeatures
    clock: PartitionClock
    next_offset: int
    next_trade: int
    trades_at_end: bool = False
    trades_until_ns: int | None = None
    until_ns: int | None = None
    closed_until_ns: int | None = None
    _counted: TickCounts = field(init=False)
    _counted_beyond_reach: int = field(init=False)
    _published_until_ns: int | None = field(init=False, default=None)
    _published_at_ns: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._counted, self._counted_beyond_reach = self.state.counts, self.state.beyond_reach

    def add_ticks(self, records: Sequence[Message], gaps: dict[str, NDArray[np.int64]]) -> Added:
        """Add the ticks of the next records, and move `next_offset` on.

        Args:
            records: of ticks.raw, in offset order; those before `next_offset` are left out.
            gaps: all known gaps by connection, also of connections that are new to this partition.
        """
        fresh = [record for record in records if (record.offset() or 0) >= self.next_offset]
        if not fresh:
            return Added()
        self.clock.at_end = False
        self.next_offset = (fresh[-1].offset() or 0) + 1
        ticks = tick_columns(_table(TICKS, self.number, fresh))
        restarted = False
        if len(ticks):
            self.state.learn_gaps(gaps)
            restarted = self.state.add(ticks)
            if restarted:
                self.clock.restart()
                self.closed_until_ns = None
        return Added(len(ticks), len(fresh) - len(ticks), is_news=True, restarted=restarted)

    def add_trades(self, records: Sequence[Message]) -> Added:
        """Add the trades of the next records of trades.raw, and move `next_trade` on."""
        self.next_trade = (records[-1].offset() or 0) + 1
        table = _table(TRADES, self.number, records)
        if not table.num_rows:
            return Added(unreadable=len(records))
        self.trades_until_ns = table["event_time_ns"][-1].as_py()
        trades = trade_columns(table)
        self.state.add_trades(trades)
        return Added(len(trades), len(records) - len(trades), is_news=True)

    def closing(self, now_ns: int, feed_ns: int | None) -> int | None:
        """Return the event time until which seconds may close; None where none may.

        Args:
            now_ns: wall clock.
            feed_ns: event time of the whole feed.
        """
        own_ns = self.state.newest_ns
        if own_ns is None and self.clock.at_end and self.trades_at_end:
            # Without a tick so far it has no rows; the feed's time says until when it had none.
            own_ns = feed_ns
        if not self.trades_at_end and own_ns is not None:
            # Trades wait to be read: seconds close no further than the trades that were read.
            own_ns = None if self.trades_until_ns is None else min(own_ns, self.trades_until_ns)
            feed_ns = None
        self.until_ns = self.clock.closing(now_ns, own_ns, feed_ns)
        return self.until_ns

    def note_closed(self, until_ns: int, bar_ns: int) -> None:
        """Note that all bars that end by `until_ns` are closed; whoever restarts begins anew.

        Args:
            until_ns: event time.
            bar_ns: length of a bar.
        """
        self.closed_until_ns = max(until_ns // bar_ns * bar_ns, self.closed_until_ns or 0)

    def take_closed(self, now_ns: int) -> int | None:
        """Return how far bars are closed, at most once a second and only if that changed; else None.

        Args:
            now_ns: wall clock.
        """
        if self.closed_until_ns in (None, self._published_until_ns) or now_ns - self._published_at_ns < NS:
            return None
        self._published_until_ns, self._published_at_ns = self.closed_until_ns, now_ns
        return self._published_until_ns

    @property
    def is_finished(self) -> bool:
        """Return whether both logs were read to their end, and every second with a tick is closed."""
        newest_ns, end_ns = self.state.newest_ns, self.state.end_ns
        is_closed = newest_ns is None or (end_ns is not None and end_ns > newest_ns)
        return self.clock.at_end and self.trades_at_end and is_closed

    def count_into(self, progress: LiveProgress) -> None:
        """Add the counts of cleaning since the last call to `progress`."""
        counts, before = self.state.counts, self._counted
        progress.late += counts.late - before.late
        progress.duplicates += counts.duplicates - before.duplicates
        progress.rejected += counts.rejected - before.rejected
        progress.beyond_reach += self.state.beyond_reach - self._counted_beyond_reach
        self._counted, self._counted_beyond_reach = counts, self.state.beyond_reach


@dataclass
class Polled:
    """Messages of one poll by partition, with other reports of the consumer.

    Attributes:
        records: by partition, in offset order.
        ended: partitions read to their end, with no record after it.
        expired: partitions whose next offset the log no longer has, with the consumer's error.
        errors: others, with their partition; None where an error belongs to no partition.
    """

    records: dict[int, list[Message]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    expired: dict[int, KafkaError] = field(default_factory=dict)
    errors: list[tuple[int | None, KafkaError]] = field(default_factory=list)

    @classmethod
    def of(cls, messages: Sequence[Message]) -> Polled:
        """Sort the messages of one poll."""
        polled = cls()
        for message in messages:
            error, number = message.error(), message.partition()
            if error is None:
                assert number is not None
                polled.records.setdefault(number, []).append(message)
                polled.ended.discard(number)
            elif error.code() == KafkaError._PARTITION_EOF and number is not None:
                polled.ended.add(number)
            elif error.code() == KafkaError._AUTO_OFFSET_RESET and number is not None:
                polled.expired[number] = error
            else:
                polled.errors.append((number, error))
        return polled


def _table(topic: str, partition: int, records: Sequence[Message]) -> Any:
    """Decode records into the columns of raw storage; records without a product are left out."""
    values = [record.value() for record in records]
    batch = to_batch(topic, partition, records[0].offset() or 0, values, lambda _: 0, None)
    table = pa.Table.from_batches([batch])
    return table.filter(table["product_id"].is_valid())
