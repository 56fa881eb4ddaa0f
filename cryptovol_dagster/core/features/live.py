"""Features of a stream: bars of the look-back carried along, and rows that are told again once they change.

Belongs here: how batch functions are used on what has come so far. Does not belong here: Kafka, files, clocks
(whoever calls says until when a stream is complete).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cryptovol_dagster.core.features.catalogue import lookback_bars, own_feature_names
from cryptovol_dagster.core.features.compute import compute_own_features
from cryptovol_dagster.core.features.grid import FeatureGrid, Reason
from cryptovol_dagster.core.market.bars import TRADES_KNOWN_FOR_NS, BarGrid, build_bars, tick_reach_ns
from cryptovol_dagster.core.market.cleaning import (
    TickCounts,
    clean_ticks,
    clean_trades,
    flag_gaps,
    recent_ticks,
)
from cryptovol_dagster.core.market.ticks import TickColumns, TradeColumns
from cryptovol_dagster.core.specs import NS, TimescaleSpec

#: A difference of a feature below this (relative) is the rounding of a formula, not news.
TOLERANCE = 1e-13
#: A partition that stays silent has its bars rebuilt back to its last tick, at most this far; and for as long
#: after its last tick it has rows.
LONGEST_SILENCE_NS = 3_600 * NS
#: Event time that jumps further ahead is another recording, and there is nothing in between to be told.
LONGEST_HOLE_NS = 6 * 3_600 * NS


class FeatureWindow:
    """Bars of the longest look-back, carried along as bars are added, and the features of the newest."""

    def __init__(self, spec: TimescaleSpec) -> None:
        self._spec = spec
        self.bars: BarGrid | None = None

    def put(self, bars: BarGrid) -> None:
        """Take bars that adjoin those held, or replace the last of them.

        Raises:
            BarsError: `bars` begin after the end of those held, or before their beginning.
        """
        if self.bars is not None:
            held = self.bars.with_products(bars.products)
            bars = BarGrid.concat([held.slice(held.start_ns, bars.start_ns), bars])
        self.bars = bars

    def features(self, from_ns: int) -> FeatureGrid:
        """Own features of the bars held from `from_ns` on."""
        assert self.bars is not None
        return compute_own_features(self.bars, self._spec, from_ns=from_ns)

    def forget_before(self, from_ns: int) -> None:
        """Keep what the features of bars from `from_ns` on need."""
        assert self.bars is not None
        bars, spec = self.bars, self._spec
        first_ns = max(bars.start_ns, from_ns - lookback_bars(spec) * spec.bar_ns)
        # Copies, so that the bars before them can be freed.
        self.bars = BarGrid.concat([bars.slice(first_ns, bars.end_ns), bars.slice(bars.end_ns, bars.end_ns)])


@dataclass(frozen=True, eq=False)
class LiveRows:
    """Feature rows to tell, ordered by bar, then product.

    Attributes:
        products: product ids, indexed by `product`.
        names: names of the own features: the products of other partitions are not known here.
        bar_ns: length of a bar.
        product: index into `products` (n,).
        bar_start_ns: start of each row's bar (n,); the row is known at the bar's end.
        values: features (n, n_features); NaN where one has no value.
        valid: the row may be scored (n,).
        reason: code of `Reason` (n,).
        revision: 0 when first told, one more whenever it is told again (n,).
        provisional: told while the product was in a gap, or before anything as late as the bar's end was
            heard of the feed: a revision may follow (n,).
        known: an earlier run told this very row (n,); it need not be told again.
    """

    products: tuple[str, ...]
    names: tuple[str, ...]
    bar_ns: int
    product: NDArray[np.int64]
    bar_start_ns: NDArray[np.int64]
    values: NDArray[np.float64]
    valid: NDArray[np.bool_]
    reason: NDArray[np.int8]
    revision: NDArray[np.int32]
    provisional: NDArray[np.bool_]
    known: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.product)

    @property
    def bar_end_ns(self) -> NDArray[np.int64]:
        """End of each row's bar: when the row could be known."""
        return self.bar_start_ns + self.bar_ns

    def take(self, rows: NDArray[Any]) -> LiveRows:
        """The given rows (indices or mask)."""
        names = [each.name for each in fields(self)][3:]
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def to_frame(self) -> pd.DataFrame:
        """Columns of `FeatureGrid.to_frame`, then `revision` and `provisional`; product as text."""
        return pd.DataFrame(
            {
                "bar_start": pd.to_datetime(self.bar_start_ns, unit="ns", utc=True),
                "product": pd.Series(np.array(self.products, dtype=object)[self.product], dtype=object),
                **dict(zip(self.names, self.values.T, strict=True)),
                "valid": self.valid,
                "reason": self.reason,
                "revision": self.revision,
                "provisional": self.provisional,
            }
        )


@dataclass(frozen=True, eq=False)
class ToldRow:
    """A row as an earlier run told it."""

    product_id: str
    bar_end_ns: int
    revision: int
    valid: bool
    reason: int
    values: NDArray[np.float64]


class _Told:
    """What was told of the bars that may still change: arrays (products, bars), values (features, …)."""

    def __init__(self, n_features: int, start_ns: int, bar_ns: int) -> None:
        self.start_ns, self._bar_ns = start_ns, bar_ns
        self.values = np.empty((n_features, 0, 0))
        self.valid = np.empty((0, 0), dtype=np.bool_)
        self.reason = np.empty((0, 0), dtype=np.int8)
        #: −1: not told.
        self.revision = np.empty((0, 0), dtype=np.int32)

    def grow(self, n_products: int, end_ns: int) -> None:
        missing = (
            (0, n_products - self.revision.shape[0]),
            (0, (end_ns - self.start_ns) // self._bar_ns - self.revision.shape[1]),
        )
        if not any(after for _, after in missing):
            return
        self.values = np.pad(self.values, ((0, 0), *missing), constant_values=np.nan)
        self.valid = np.pad(self.valid, missing)
        self.reason = np.pad(self.reason, missing)
        self.revision = np.pad(self.revision, missing, constant_values=-1)

    def since(self, start_ns: int) -> tuple[NDArray[Any], ...]:
        """Views of values, valid, reason, revision from a bar on."""
        first = (start_ns - self.start_ns) // self._bar_ns
        return (
            self.values[:, :, first:],
            self.valid[:, first:],
            self.reason[:, first:],
            self.revision[:, first:],
        )

    def forget_before(self, start_ns: int) -> None:
        views = self.since(start_ns)
        self.values, self.valid, self.reason, self.revision = (view.copy() for view in views)
        self.start_ns = start_ns


class LiveFeatures:
    """Ticks and trades of one partition → rows of own features, told when their bar closes or they change.

    The last revision of each row is the row that cleaning, bars and features give on all ticks at once. What
    may still change is rebuilt at each close by the same functions: a delayed tick, a gap that is learnt of
    late. State is a function of the last seconds: ticks of the bars that may change, bars of the look-back.
    """

    def __init__(
        self,
        spec: TimescaleSpec,
        *,
        lateness_ns: int,
        silent_until_ns: int = 0,
        told: Iterable[ToldRow] = (),
    ) -> None:
        """Begin with nothing.

        Args:
            spec: what to compute.
            lateness_ns: by how much closing waits; disorder beyond it leads to revisions.
            silent_until_ns: rows of bars that end by then only serve as look-back.
            told: rows that an earlier run told, of bars that end later than that.
        """
        self._spec = spec
        disorder_ns = lateness_ns + round(spec.late_after_s * NS)
        revisable_ns = round(spec.gap_after_s * NS) + tick_reach_ns(spec) + disorder_ns
        #: How far back bars are kept open, whatever happens.
        self.revisable_ns = -(-revisable_ns // spec.bar_ns) * spec.bar_ns
        self._ticks_kept_ns = tick_reach_ns(spec) + disorder_ns
        #: Rows of bars that end by then are not told: an earlier run told them.
        self.silent_until_ns = silent_until_ns
        self._earlier = {(row.product_id, row.bar_end_ns): row for row in told}
        self._gaps: dict[str, NDArray[np.int64]] = {}
        self._first_revision = self._newest_revision = 0
        self._owed: list[LiveRows] = []
        #: What cleaning did with the ticks so far.
        self.counts = TickCounts()
        self._trades = TradeColumns.empty()
        #: Ticks and trades that came when nothing they change could be told any more.
        self.beyond_reach = 0
        #: How often time went back, or far ahead, and everything began anew.
        self.restarts = 0
        self._begin()

    def _begin(self) -> None:
        self._window = FeatureWindow(self._spec)
        self._ticks = TickColumns.empty()
        self._counted = TickCounts()
        self._connections: set[str] = set()
        #: Start of the first bar of each product that has rows.
        self._first_ns: dict[str, int] = {}
        #: Bars before this are final; those from here to `end_ns` have been told and may change.
        self.final_ns = 0
        self._told = _Told(len(own_feature_names(self._spec)), 0, self._spec.bar_ns)
        self._changed = False
        #: End of the last bar told; None before the first.
        self.end_ns: int | None = None
        #: Newest event time of a tick; None before the first.
        self.newest_ns: int | None = None

    @property
    def products(self) -> tuple[str, ...]:
        """Products met so far."""
        return self._ticks.products

    @property
    def bars(self) -> BarGrid | None:
        """The bars held: those of the look-back, then those that may change; None before the first."""
        return self._window.bars

    def learn_gaps(self, gaps: dict[str, NDArray[np.int64]]) -> None:
        """Know of lost messages: first missing numbers by connection, ascending, all that are known."""
        for connection, firsts in gaps.items():
            known = self._gaps.get(connection)
            if known is None or len(known) != len(firsts):
                self._gaps[connection] = firsts
                self._changed |= connection in self._connections

    def add(self, ticks: TickColumns) -> bool:
        """Take the next ticks in offset order.

        Returns:
            Whether time went back or far ahead on the way, so that everything began anew. What was open
            before is told by the next `close`.
        """
        restarted = False
        while (row := self._break_at(ticks)) is not None:
            self._take(ticks.take(slice(0, row)))
            self._restart()
            ticks, restarted = ticks.take(slice(row, None)), True
        self._take(ticks)
        return restarted

    def add_trades(self, trades: TradeColumns) -> None:
        """Take trades, in any order; those said twice, or in a snapshot, count once or not at all."""
        held = self._trades
        self._trades = clean_trades(TradeColumns.concat([held, trades]))
        if self.end_ns is None or len(self._trades) == len(held):
            return
        self._changed |= bool((trades.trade_time_ns < self.end_ns).any())
        too_late, before = (int((t.trade_time_ns < self.final_ns).sum()) for t in (self._trades, held))
        self.beyond_reach += too_late - before

    def close(self, until_ns: int, heard_ns: int) -> LiveRows:
        """Tell the bars that end by `until_ns`, and those told before that changed.

        Args:
            until_ns: nothing older is expected to come, and if it does it leads to revisions.
            heard_ns: newest event time heard of the feed; rows of later bars are provisional.
        """
        rows = [*self._owed, *self._close(until_ns, heard_ns)]
        self._owed = []
        return _joined(rows, self._spec)

    def _break_at(self, ticks: TickColumns) -> int | None:
        """The row at which another recording begins, if one does."""
        if not len(ticks):
            return None
        times = ticks.event_time_ns
        before = np.concatenate([[times[0] if self.newest_ns is None else self.newest_ns], times[:-1]])
        before = np.maximum.accumulate(before)
        breaks = np.flatnonzero(times - before > LONGEST_HOLE_NS)[:1].tolist()
        # One connection's time may be disturbed, but only another one begins anew.
        _, firsts = np.unique(ticks.connection, return_index=True)
        for row in firsts.tolist():
            is_new = ticks.connections[ticks.connection[row]] not in self._connections
            if is_new and before[row] - times[row] > self.revisable_ns:
                breaks.append(row)
        return min(breaks, default=None)

    def _restart(self) -> None:
        if self.newest_ns is not None:
            self._owed += self._close(self.newest_ns + self._spec.bar_ns, self.newest_ns)
        self.restarts += 1
        self.silent_until_ns = 0
        # What is told again under the same key must not look older than what was told before.
        self._first_revision = self._newest_revision + 1
        self._begin()

    def _take(self, ticks: TickColumns) -> None:
        if not len(ticks):
            return
        self._connections.update(ticks.connections[code] for code in np.unique(ticks.connection))
        times = ticks.event_time_ns
        if self.end_ns is not None:
            self._changed |= bool((times < self.end_ns).any())
            self.beyond_reach += int((times < self.final_ns).sum())
        self.newest_ns = max(int(times.max()), self.newest_ns or 0)
        self._ticks = TickColumns.concat([self._ticks, ticks])

    def _close(self, until_ns: int, heard_ns: int) -> list[LiveRows]:
        spec = self._spec
        if self.newest_ns is None:
            return []
        until_ns = min(until_ns, self.newest_ns + LONGEST_SILENCE_NS) // spec.bar_ns * spec.bar_ns
        cleaned = clean_ticks(flag_gaps(self._ticks, self._gaps), round(spec.late_after_s * NS))
        self.counts += _difference(cleaned.counts, self._counted)
        self._counted = cleaned.counts
        ticks = cleaned.ticks
        if self.end_ns is None:
            if not len(ticks):
                return []
            start_ns = int(ticks.event_time_ns.min()) // spec.bar_ns * spec.bar_ns
            if until_ns <= start_ns:
                return []
            self.final_ns = self._told.start_ns = self.end_ns = start_ns
        if until_ns <= self.end_ns and not self._changed:
            return []
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
        rows = self._tell(self._window.features(from_ns), heard_ns) if from_ns < end_ns else []
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
        """Start of the first bar that differs from what it was; `end_ns` where all are as they were."""
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

    def _tell(self, grid: FeatureGrid, heard_ns: int) -> list[LiveRows]:
        """Rows of `grid` that are new, or differ from what was told of them."""
        self._told.grow(len(grid.products), grid.start_ns + grid.n_bars * grid.bar_ns)
        values, valid, reason, revision = self._told.since(grid.start_ns)
        starts_ns = grid.bar_starts_ns
        begins = np.array([self._first_ns.get(product, 2**62) for product in grid.products])
        wanted = (starts_ns >= begins[:, None]) & (starts_ns + grid.bar_ns > self.silent_until_ns)
        earlier = self._recall(grid, wanted & (revision < 0)) if self._earlier else np.zeros_like(wanted)
        told = revision >= 0
        differs = (valid != grid.valid) | (reason != grid.reason) | _differ(values, grid.values)
        cells = wanted & (~told | differs | earlier)
        if not cells.any():
            return []
        revised = cells & told & differs
        revision[cells & ~told] = self._first_revision
        revision[revised] += 1
        news = cells & (~told | differs)
        values[:, news], valid[news], reason[news] = grid.values[:, news], grid.valid[news], grid.reason[news]
        self._newest_revision = max(self._newest_revision, int(revision[cells].max()))
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
                known=~news[product, bar],
            )
        ]

    def _recall(self, grid: FeatureGrid, cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Take over what an earlier run told of `cells`; says of which it told anything."""
        values, valid, reason, revision = self._told.since(grid.start_ns)
        found = np.zeros_like(cells)
        for product, bar in np.argwhere(cells).tolist():
            end_ns = grid.start_ns + (bar + 1) * grid.bar_ns
            row = self._earlier.pop((grid.products[product], end_ns), None)
            if row is not None:
                values[:, product, bar], valid[product, bar] = row.values, row.valid
                reason[product, bar], revision[product, bar] = row.reason, row.revision
                found[product, bar] = True
        return found

    def _settle(self, newest_ns: int) -> None:
        """Let go of what cannot change any more.

        A tick that was lost is only known of by the product's next one, and what a partition holds back while
        it is silent comes in order: so bars back to its last tick stay open.
        """
        spec = self._spec
        assert self.end_ns is not None
        open_ns = min(self.end_ns - self.revisable_ns, newest_ns // spec.bar_ns * spec.bar_ns)
        open_ns = max(open_ns, self.end_ns - LONGEST_SILENCE_NS)
        self.final_ns = max(self.final_ns, min(open_ns // spec.bar_ns * spec.bar_ns, self.end_ns))
        self._window.forget_before(self.final_ns)
        self._told.forget_before(self.final_ns)
        kept = recent_ticks(
            self._ticks, self._gaps, round(spec.late_after_s * NS), self.final_ns - self._ticks_kept_ns
        )
        self._ticks, self._counted = kept.ticks, kept.counts
        recent = self._trades.trade_time_ns >= self.final_ns - TRADES_KNOWN_FOR_NS
        self._trades = self._trades.take(recent)


def _difference(whole: TickCounts, part: TickCounts) -> TickCounts:
    return TickCounts(
        **{each.name: getattr(whole, each.name) - getattr(part, each.name) for each in fields(whole)}
    )


def _differ(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where (features, products, bars) differ in any feature by more than rounding."""
    with np.errstate(invalid="ignore"):
        close = np.abs(before - after) <= TOLERANCE * np.abs(after)
    equal = close | (np.isnan(before) & np.isnan(after))
    return np.logical_not(equal.all(axis=0))


def _joined(parts: Sequence[LiveRows], spec: TimescaleSpec) -> LiveRows:
    if len(parts) == 1:
        return parts[0]
    names = own_feature_names(spec)
    products = tuple(dict.fromkeys(product for part in parts for product in part.products))
    place = {product: code for code, product in enumerate(products)}
    codes = [np.array([place[p] for p in part.products], dtype=np.int64)[part.product] for part in parts]
    columns: dict[str, Any] = {
        "product": np.concatenate([np.empty(0, np.int64), *codes]),
        "values": np.concatenate([np.empty((0, len(names))), *(part.values for part in parts)]),
    }
    for name, dtype in (
        ("bar_start_ns", np.int64),
        ("valid", np.bool_),
        ("reason", np.int8),
        ("revision", np.int32),
        ("provisional", np.bool_),
        ("known", np.bool_),
    ):
        columns[name] = np.concatenate([np.empty(0, dtype), *(getattr(part, name) for part in parts)])
    return LiveRows(products=products, names=names, bar_ns=spec.bar_ns, **columns)
