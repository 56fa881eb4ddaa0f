"""Features of a stream: look-back bars are kept, and rows that change are published again.

Belongs here: how batch functions are applied to the ticks so far. Does not belong here: Kafka, files, clocks
(the caller says until when a stream is complete).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cryptovol_dagster.core.features.catalogue import lookback_bars, own_feature_names
from cryptovol_dagster.core.features.compute import compute_own_features
from cryptovol_dagster.core.features.grid import FeatureGrid, Reason
from cryptovol_dagster.core.features.live_rows import LiveRows, PublishedRow, join_rows
from cryptovol_dagster.core.features.open_ticks import OpenTicks
from cryptovol_dagster.core.features.published import PublishedGrid
from cryptovol_dagster.core.market.bars import TRADES_KNOWN_FOR_NS, BarGrid, build_bars, tick_reach_ns
from cryptovol_dagster.core.market.cleaning import TickCounts, clean_trades
from cryptovol_dagster.core.market.ticks import TickColumns, TradeColumns
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import HOUR_NS

#: A silent partition has its bars rebuilt back to its last tick, at most this far.
#: It also has rows for this long after its last tick.
LONGEST_SILENCE_NS = HOUR_NS
#: Event time that jumps further ahead is another recording: no rows are published in between.
LONGEST_HOLE_NS = 6 * HOUR_NS
#: Final ticks and look-back bars are dropped once so many bars of them lie behind: each drop copies the rest.
_BARS_TO_DROP_AT = 16


class FeatureWindow:
    """Bars of the longest look-back, and the features of the newest bars."""

    def __init__(self, spec: TimescaleSpec) -> None:
        self._spec = spec
        self.bars: BarGrid | None = None

    def put(self, bars: BarGrid) -> None:
        """Add bars that adjoin those held, or replace the last of them.

        Raises:
            BarsError: `bars` begin after the end of those held, or before their beginning.
        """
        if self.bars is not None:
            held = self.bars.with_products(bars.products)
            bars = BarGrid.concat([held.slice(held.start_ns, bars.start_ns), bars])
        self.bars = bars

    def features(self, from_ns: int) -> FeatureGrid:
        """Compute the own features of the bars held from `from_ns` on."""
        assert self.bars is not None
        return compute_own_features(self.bars, self._spec, from_ns=from_ns)

    def forget_before(self, from_ns: int) -> None:
        """Keep the bars that features from `from_ns` on need, and drop older ones, many at a time."""
        assert self.bars is not None
        bars, spec = self.bars, self._spec
        first_ns = from_ns - lookback_bars(spec) * spec.bar_ns
        if first_ns - bars.start_ns < _BARS_TO_DROP_AT * spec.bar_ns:
            return
        # Copies, so that the bars before them can be freed.
        self.bars = BarGrid.concat([bars.slice(first_ns, bars.end_ns), bars.slice(bars.end_ns, bars.end_ns)])


def revisable_ns(spec: TimescaleSpec, lateness_ns: int) -> int:
    """Return how far back bars always stay open, in nanoseconds: whole bars.

    Args:
        spec: what to compute.
        lateness_ns: how long closing a bar waits.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> revisable_ns(SPEC, lateness_ns=2_000_000_000) // 1_000_000_000
        70
    """
    reach_ns = round(spec.gap_after_s * NS) + tick_reach_ns(spec) + _disorder_ns(spec, lateness_ns)
    return -(-reach_ns // spec.bar_ns) * spec.bar_ns


def _disorder_ns(spec: TimescaleSpec, lateness_ns: int) -> int:
    return lateness_ns + round(spec.late_after_s * NS)


class LiveFeatures:
    """Turn ticks and trades of one partition into rows of own features.

    A row is returned when its bar closes, and again when it changes. The last revision of each row equals
    the row that one computation over all ticks gives. At each close the same functions rebuild the bars that
    may still change, after a delayed tick or a gap reported late. State is bounded: the ticks of the bars
    that may change, and the bars of the look-back.

    Examples:
        >>> from cryptovol_dagster.core.market.synthetic import START_NS, synthetic_ticks
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> ticks, trades = synthetic_ticks(SPEC, 4, products=("BTC-USD",))
        >>> live = LiveFeatures(SPEC, lateness_ns=0)
        >>> live.add(ticks)
        False
        >>> rows = live.close(START_NS + 3 * SPEC.bar_ns, heard_ns=START_NS + 4 * SPEC.bar_ns)
        >>> len(rows), rows.revision
        (3, array([0, 0, 0], dtype=int32))
    """

    def __init__(
        self,
        spec: TimescaleSpec,
        *,
        lateness_ns: int,
        silent_until_ns: int = 0,
        published: Iterable[PublishedRow] = (),
    ) -> None:
        """Begin without ticks.

        Args:
            spec: what to compute.
            lateness_ns: how long closing a bar waits; a tick that comes later leads to a revision.
            silent_until_ns: rows of bars that end by then only serve as look-back.
            published: rows that an earlier run published, of bars that end later than that.
        """
        self._spec = spec
        #: How far back bars are kept open, whatever happens.
        self.revisable_ns = revisable_ns(spec, lateness_ns)
        self._ticks_kept_ns = tick_reach_ns(spec) + _disorder_ns(spec, lateness_ns)
        #: Rows of bars that end by then are not returned: an earlier run published them.
        self.silent_until_ns = silent_until_ns
        self._published = PublishedGrid(len(own_feature_names(spec)), spec.bar_ns, published)
        self._ticks = OpenTicks(round(spec.late_after_s * NS))
        self._owed: list[LiveRows] = []
        self._trades = TradeColumns.empty()
        #: Ticks and trades that came too late to revise the rows they change.
        self.beyond_reach = 0
        #: How often time went back or far ahead, so that another recording began.
        self.restarts = 0
        self._window = FeatureWindow(spec)
        #: Start of the first bar of each product that has rows.
        self._first_ns: dict[str, int] = {}
        #: Bars before this are final; those from here to `end_ns` are closed and may change.
        self.final_ns = 0
        #: Ticks and trades before this were dropped as far as they may be.
        self._forgot_ns = 0
        self._changed = False
        #: End of the last bar closed; None before the first.
        self.end_ns: int | None = None
        #: Newest event time of a tick; None before the first.
        self.newest_ns: int | None = None

    @property
    def counts(self) -> TickCounts:
        """Rows by outcome of cleaning, of all ticks so far."""
        return self._ticks.counts

    @property
    def products(self) -> tuple[str, ...]:
        """Products seen so far."""
        return self._ticks.products

    @property
    def bars(self) -> BarGrid | None:
        """Bars of the look-back, then those that may change; None before the first close."""
        return self._window.bars

    def learn_gaps(self, gaps: dict[str, NDArray[np.int64]]) -> None:
        """Note lost messages: all known first missing sequence numbers, ascending, by connection."""
        self._changed |= self._ticks.learn_gaps(gaps)

    def add(self, ticks: TickColumns) -> bool:
        """Add the next ticks in offset order.

        Returns:
            Whether time went back or far ahead, so that another recording began. The next `close` returns
            the rows that were open before.
        """
        restarted = False
        while (row := self._break_at(ticks)) is not None:
            self._take(ticks.take(slice(0, row)))
            self._restart()
            ticks, restarted = ticks.take(slice(row, None)), True
        self._take(ticks)
        return restarted

    def add_trades(self, trades: TradeColumns) -> None:
        """Add trades, in any order; repeats count once, trades of a snapshot not at all."""
        held = self._trades
        self._trades = clean_trades(TradeColumns.concat([held, trades]))
        if self.end_ns is None or len(self._trades) == len(held):
            return
        self._changed |= bool((trades.trade_time_ns < self.end_ns).any())
        too_late, before = (int((t.trade_time_ns < self.final_ns).sum()) for t in (self._trades, held))
        self.beyond_reach += too_late - before

    def close(self, until_ns: int, heard_ns: int) -> LiveRows:
        """Return the rows of bars that end by `until_ns`, and earlier rows that changed.

        Args:
            until_ns: event time until which the stream is complete; older ticks lead to revisions.
            heard_ns: newest event time of the whole feed; rows of later bars are provisional.
        """
        rows = [*self._owed, *self._close(until_ns, heard_ns)]
        self._owed = []
        return join_rows(rows, self._spec)

    def _break_at(self, ticks: TickColumns) -> int | None:
        """Return the row at which another recording begins; None where none does."""
        if not len(ticks):
            return None
        times = ticks.event_time_ns
        before = np.concatenate([[times[0] if self.newest_ns is None else self.newest_ns], times[:-1]])
        before = np.maximum.accumulate(before)
        breaks = np.flatnonzero(times - before > LONGEST_HOLE_NS)[:1].tolist()
        # Within a connection time may be disturbed; only a new connection starts another recording.
        _, firsts = np.unique(ticks.connection, return_index=True)
        for row in firsts.tolist():
            is_new = ticks.connections[ticks.connection[row]] not in self._ticks.connections
            if is_new and before[row] - times[row] > self.revisable_ns:
                breaks.append(row)
        return min(breaks, default=None)

    def _restart(self) -> None:
        if self.newest_ns is not None:
            self._owed += self._close(self.newest_ns + self._spec.bar_ns, self.newest_ns)
        self.restarts += 1
        self.silent_until_ns = 0
        self._published.restart()
        self._ticks.restart()
        self._window = FeatureWindow(self._spec)
        self._first_ns = {}
        self.final_ns = self._forgot_ns = 0
        self._changed, self.end_ns, self.newest_ns = False, None, None

    def _take(self, ticks: TickColumns) -> None:
        if not len(ticks):
            return
        times = ticks.event_time_ns
        if self.end_ns is not None:
            self._changed |= bool((times < self.end_ns).any())
            self.beyond_reach += int((times < self.final_ns).sum())
        self.newest_ns = max(int(times.max()), self.newest_ns or 0)
        self._ticks.add(ticks)

    def _close(self, until_ns: int, heard_ns: int) -> list[LiveRows]:
        spec = self._spec
        if self.newest_ns is None:
            return []
        until_ns = min(until_ns, self.newest_ns + LONGEST_SILENCE_NS) // spec.bar_ns * spec.bar_ns
        if self.end_ns is not None and until_ns <= self.end_ns and not self._changed:
            return []
        ticks = self._ticks.cleaned()
        if self.end_ns is None:
            if not len(ticks):
                return []
            start_ns = int(ticks.event_time_ns.min()) // spec.bar_ns * spec.bar_ns
            if until_ns <= start_ns:
                return []
            self.final_ns = self.end_ns = start_ns
            self._published.begin(start_ns)
        end_ns = max(until_ns, self.end_ns)
        self._note_firsts(ticks)
        bars = build_bars(
            ticks,
            start_ns=self.final_ns,
            end_ns=end_ns,
            spec=spec,
            trades=self._trades if len(self._trades) else None,
        )
        from_ns = self._first_change(bars, self.end_ns)
        self._window.put(bars)
        rows = self._changed_rows(self._window.features(from_ns), heard_ns) if from_ns < end_ns else []
        self.end_ns, self._changed = end_ns, False
        self._settle(self.newest_ns)
        return rows

    def _note_firsts(self, ticks: TickColumns) -> None:
        for code in np.unique(ticks.product).tolist():
            first_ns = int(ticks.event_time_ns[ticks.product == code].min())
            bar_ns = max(first_ns, self.final_ns) // self._spec.bar_ns * self._spec.bar_ns
            product = ticks.products[code]
            self._first_ns[product] = min(bar_ns, self._first_ns.get(product, bar_ns))

    def _first_change(self, bars: BarGrid, end_ns: int) -> int:
        """Return the start of the first bar that changed; `end_ns` where none did."""
        held = self._window.bars
        if held is None:
            return bars.start_ns
        held = held.with_products(bars.products).slice(bars.start_ns, end_ns)
        differs = np.zeros(held.n_bars, dtype=np.bool_)
        for name, before in held.columns().items():
            after = getattr(bars, name)[:, : held.n_bars]
            unequal = before != after
            if before.dtype.kind == "f":
                unequal &= ~(np.isnan(before) & np.isnan(after))
            differs |= unequal.any(axis=0)
        changed = np.flatnonzero(differs)
        return bars.start_ns + int(changed[0]) * bars.bar_ns if len(changed) else end_ns

    def _changed_rows(self, grid: FeatureGrid, heard_ns: int) -> list[LiveRows]:
        """Return the rows of `grid` that are new, changed, or published by an earlier run."""
        starts_ns = grid.bar_starts_ns
        begins = np.array([self._first_ns.get(product, 2**62) for product in grid.products])
        wanted = (starts_ns >= begins[:, None]) & (starts_ns + grid.bar_ns > self.silent_until_ns)
        cells, known, revision = self._published.update(grid, wanted)
        if not cells.any():
            return []
        bar, product = np.nonzero(cells.T)
        in_gap = grid.reason[product, bar] == Reason.IN_GAP
        return [
            LiveRows(
                products=grid.products,
                names=grid.names,
                bar_ns=grid.bar_ns,
                product=product,
                bar_start_ns=starts_ns[bar],
                values=np.ascontiguousarray(grid.values[:, product, bar].T),
                valid=grid.valid[product, bar],
                reason=grid.reason[product, bar],
                revision=revision[product, bar],
                provisional=in_gap | (starts_ns[bar] + grid.bar_ns > heard_ns),
                known=known[product, bar],
            )
        ]

    def _settle(self, newest_ns: int) -> None:
        """Drop what cannot change any more.

        A lost tick is only noticed at the product's next one, and delayed ticks of a silent partition come
        in order. So bars back to its last tick stay open.
        """
        spec = self._spec
        assert self.end_ns is not None
        open_ns = min(self.end_ns - self.revisable_ns, newest_ns // spec.bar_ns * spec.bar_ns)
        open_ns = max(open_ns, self.end_ns - LONGEST_SILENCE_NS)
        self.final_ns = max(self.final_ns, min(open_ns // spec.bar_ns * spec.bar_ns, self.end_ns))
        self._window.forget_before(self.final_ns)
        self._published.forget_before(self.final_ns)
        if self.final_ns - self._forgot_ns >= _BARS_TO_DROP_AT * spec.bar_ns:
            self._forgot_ns = self.final_ns
            self._ticks.forget_before(self.final_ns - self._ticks_kept_ns)
            recent = self._trades.trade_time_ns >= self.final_ns - TRADES_KNOWN_FOR_NS
            self._trades = self._trades.take(recent)
