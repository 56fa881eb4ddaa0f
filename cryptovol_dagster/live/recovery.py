"""Resumption of a partition: after its published rows, with its look-back from raw storage.

Published rows decide; committed offsets only show the lag. Nothing is published here: rows that an
earlier run did not publish are returned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cryptovol_dagster.core.features.catalogue import lookback_bars
from cryptovol_dagster.core.features.live import LiveFeatures
from cryptovol_dagster.core.features.live_rows import LiveRows, PublishedRow
from cryptovol_dagster.core.market.bars import TRADES_KNOWN_FOR_NS, tick_reach_ns
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import HOUR_NS
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.live.clock import PartitionClock
from cryptovol_dagster.live.events import KnownGaps
from cryptovol_dagster.live.partition import Partition
from ingestor.archive import positions
from ingestor.envelope import TICKS, TRADES
from ingestor.kafka.broker import Broker

LOG = logging.getLogger(__name__)

#: Ticks are published after they happened; clocks differ by less than this.
_SKEW_NS = 60 * NS
_EVER_NS = 2**62


class OffsetsByTime(Protocol):
    """Finds offsets by time of publication; see `LogReader`."""

    def offset_at(self, topic: str, partition: int, time_ns: int) -> int | None:
        """Return the offset of the first record published at `time_ns` or later."""
        ...


@dataclass(frozen=True)
class Recovered:
    """A partition as its published rows left it.

    Attributes:
        partition: ready to read on.
        rows: rows that an earlier run did not publish, in order.
        summary: from where it was recovered, for `LiveProgress`.
    """

    partition: Partition
    rows: list[LiveRows]
    summary: dict[str, Any]


class Recovery:
    """Restores partitions from the published rows and from raw storage."""

    def __init__(
        self,
        broker: Broker,
        log: OffsetsByTime,
        store: RawStore,
        spec: TimescaleSpec,
        gaps: KnownGaps,
        *,
        lateness_ns: int,
        newest_published: Callable[[int], tuple[list[PublishedRow], int | None]],
        partition_of: Callable[[str], int],
    ) -> None:
        """Restore nothing yet.

        Args:
            broker: where the topics are.
            log: finds offsets by time.
            store: raw storage; it may be absent.
            spec: what is computed.
            gaps: known gaps; those in raw storage are added.
            lateness_ns: how long closing a bar waits.
            newest_published: newest rows of a partition's products, and the bar end to resume after.
            partition_of: partition of a product's ticks.
        """
        self._broker, self._log, self._store, self._spec, self._gaps = broker, log, store, spec, gaps
        self._lateness_ns = lateness_ns
        self._newest_published, self._partition_of = newest_published, partition_of

    def recover(self, number: int) -> Recovered:
        """Restore a partition, and find the offsets to read next.

        Raises:
            LiveError: published rows cannot be read.
            ArchiveError: raw storage cannot be read.
            BrokerError: the broker does not answer.
        """
        published, resume_ns = self._newest_published(number)
        log_id = self._broker.log_id(TICKS)
        log = self._broker.offsets(TICKS, number)
        # Read before raw storage: records stored meanwhile are read twice, and count once.
        stored = self._stored_offset(TICKS, log_id, number)
        stored_trades = self._stored_offset(TRADES, self._broker.log_id(TRADES), number)
        log_of_trades = self._broker.offsets(TRADES, number)
        if resume_ns is None:
            resume_ns = self._first_bar_ns(log_id, number, log[0])
        state = LiveFeatures(
            self._spec,
            lateness_ns=self._lateness_ns,
            silent_until_ns=resume_ns or 0,
            published=[row for row in published if row.bar_end_ns > (resume_ns or 0)],
        )
        read_from_ns = trades_until_ns = None
        next_trade = log_of_trades[0]
        rows: list[LiveRows] = []
        if resume_ns is not None:
            spec = self._spec
            read_from_ns = resume_ns - lookback_bars(spec) * spec.bar_ns - tick_reach_ns(spec) - _SKEW_NS
            trades_from_ns = read_from_ns - TRADES_KNOWN_FOR_NS
            next_trade = self.next_offset(
                TRADES, number, stored_trades, log_of_trades, trades_from_ns if published else None
            )
            rows, trades_until_ns = self.replay_raw(
                state, number, read_from_ns, trades_wait=next_trade < log_of_trades[1]
            )
        offset = self.next_offset(TICKS, number, stored, log, read_from_ns if published else None)
        partition = Partition(
            number,
            state,
            PartitionClock(self._lateness_ns),
            offset,
            next_trade,
            trades_until_ns=trades_until_ns,
        )
        summary = {
            "told_until_ns": max((row.bar_end_ns for row in published), default=None),
            "raw_ticks": state.counts.read,
            "kafka_offset": offset,
        }
        return Recovered(partition, rows, summary)

    def replay_raw(
        self, state: LiveFeatures, number: int, from_ns: int, *, trades_wait: bool
    ) -> tuple[list[LiveRows], int | None]:
        """Add the records of raw storage since `from_ns` to `state`.

        Args:
            state: of the partition; its `silent_until_ns` is the end of its published rows.
            number: of the partition.
            from_ns: event time to read from.
            trades_wait: whether the log of trades has records that are not stored.

        Returns:
            Rows that an earlier run did not publish, in order.
            Event time of the last stored trade; None where none is stored. Seconds close no further: ticks
            may be stored further than trades, and no trade at all while all of them wait in the log.
        """
        files = self._store.reader.files(TICKS, from_ns, _EVER_NS)
        if not files:
            return [], None
        end_ns = max(file.footer.max_time_ns for file in files) + 1
        self._gaps.add(self._store.gaps(from_ns - HOUR_NS, end_ns))
        state.learn_gaps(self._gaps.by_connection)
        products, trades_until_ns = self._stored_products(number, from_ns, end_ns)
        close_until_ns = (0 if trades_wait else end_ns) if trades_until_ns is None else trades_until_ns
        silent_until_ns = state.silent_until_ns
        rows: list[LiveRows] = []
        for span in ((from_ns - TRADES_KNOWN_FOR_NS, from_ns), (end_ns, _EVER_NS)):
            state.add_trades(self._store.trades(*span, products))
        edges = [from_ns, *range((from_ns // HOUR_NS + 1) * HOUR_NS, end_ns, HOUR_NS), end_ns]
        for first_ns, last_ns in pairwise(edges):
            state.add_trades(self._store.trades(first_ns, last_ns, products))
            if state.add(self._store.ticks(first_ns, last_ns, products, {})):
                # Raw storage also contains an earlier recording, whose rows were published already.
                rows.clear()
                state.silent_until_ns = silent_until_ns
            if state.newest_ns is not None:
                until_ns = min(state.newest_ns, close_until_ns) - self._lateness_ns
                rows.append(state.close(until_ns, state.newest_ns))
        return rows, trades_until_ns

    def next_offset(
        self, topic: str, number: int, stored: int | None, log: tuple[int, int], published_from_ns: int | None
    ) -> int:
        """Return the offset to read next.

        Args:
            topic: without prefix.
            number: of the partition.
            stored: offset after the last stored record; None where nothing of this log is stored.
            log: first offset of the log, and that of its next record.
            published_from_ns: event time from which the log is needed; None where all of it is.
        """
        start, end = log
        if stored is not None and start <= stored <= end:
            return stored
        if stored is not None:
            LOG.warning(
                "%s partition %d: raw storage ends at offset %d, the log has %d … %d; reading from %d",
                *(topic, number, stored, start, end, start),
            )
            return start
        if published_from_ns is None or self._broker.is_embedded:
            return start
        # Published after it happened, so the first record published since then is early enough.
        found = self._log.offset_at(topic, number, published_from_ns - _SKEW_NS)
        return start if found is None else found

    def _stored_offset(self, topic: str, log_id: str, number: int) -> int | None:
        return positions.stored_offsets(self._raw_dir, topic, log_id).get(number)

    @property
    def _raw_dir(self) -> Path:
        return self._store.raw_dir

    def _stored_products(self, number: int, from_ns: int, end_ns: int) -> tuple[list[str], int | None]:
        """Return the partition's products in raw storage, and the event time of their last stored trade."""
        ticked = self._store.reader.read(TICKS, from_ns, end_ns, ["product_id"])
        # Trades may be stored further than ticks; Kafka is read on from there.
        traded = self._store.reader.read(TRADES, from_ns, _EVER_NS, ["product_id", "event_time_ns"])
        met = {*ticked["product_id"].unique().to_pylist(), *traded["product_id"].unique().to_pylist()}
        products = [product for product in sorted(met - {None}) if self._partition_of(product) == number]
        known = [product in products for product in traded["product_id"].to_pylist()]
        times_ns = traded["event_time_ns"].to_numpy()[np.array(known, dtype=np.bool_)]
        return products, int(times_ns.max()) if len(times_ns) else None

    def _first_bar_ns(self, log_id: str, number: int, log_start: int) -> int | None:
        """Return the start of the bar of the log's first stored tick; None where none is stored.

        Only ticks that Kafka still has count; with an embedded broker all of them.
        """
        times = [
            file.footer.min_time_ns
            for file in self._store.reader.files(TICKS, 0, _EVER_NS)
            if (file.footer.log_id, file.footer.partition) == (log_id, number)
            and (self._broker.is_embedded or file.footer.last_offset >= log_start)
        ]
        return min(times) // self._spec.bar_ns * self._spec.bar_ns if times else None
