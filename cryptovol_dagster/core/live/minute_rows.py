"""Whole rows of the minutes, live: trades in, the rows of closed minutes out.

Candles, bars and features are computed by the functions of the assets, so the rows equal theirs bit for bit.
All products are in one grid, so no join between partitions is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cryptovol_dagster.core.features.catalogue import own_feature_names
from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.features.live import FeatureWindow
from cryptovol_dagster.core.live.join import JoinedBar, OwnRow
from cryptovol_dagster.core.market.candle_bars import candle_bars, candle_reach_ns
from cryptovol_dagster.core.market.candle_checks import NUMBERS
from cryptovol_dagster.core.market.candle_rollup import join_candles, roll_up
from cryptovol_dagster.core.market.cleaning import clean_trades
from cryptovol_dagster.core.market.ticks import TradeColumns
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import DAY_NS, HOUR_NS

#: How long a closed minute may still change: a late trade, or a lost one that the next trade shows.
REACH_NS = HOUR_NS // 2
_VALUES = (*NUMBERS, "n_trades", "signed_volume")


class MinuteRows:
    """Trades and candles of the minutes that may still change, and the bars of the look-back. Times in ns.

    Examples:
        >>> from dataclasses import replace
        >>> from cryptovol_dagster.core.market.synthetic import START_NS, synthetic_ticks
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> spec = replace(SPEC, bar_interval_s=60, quotes=False, gap_after_s=300.0)
        >>> _, trades = synthetic_ticks(spec, 10)
        >>> minutes = MinuteRows(spec, trades.products, START_NS)
        >>> minutes.add(trades)
        >>> bars = minutes.close(START_NS + 5 * spec.bar_ns)
        >>> len(bars), [row.product for row in bars[0].rows]
        (5, ['BTC-USD', 'ETH-USD'])
        >>> minutes.close(START_NS + 5 * spec.bar_ns)
        []
    """

    def __init__(
        self,
        spec: TimescaleSpec,
        products: Sequence[str],
        start_ns: int,
        imported: pd.DataFrame | None = None,
    ) -> None:
        """Begin without trades.

        Args:
            spec: a chain of the grid; its horizon does not matter.
            products: rows of the grid, in the order of the assets.
            start_ns: start of the first minute; a row is as the assets' from a whole look-back later.
            imported: candles of the exchange: `product`, `start_ns` and the five numbers. Where there is one
                it stands, as in `minutes/candles`.
        """
        self._spec, self._products = spec, tuple(products)
        self._n_own = len(own_feature_names(spec))
        self._imported = _nothing_imported() if imported is None else imported
        self._trades = TradeColumns.empty(self._products)
        self._added: list[TradeColumns] = []
        self._candles = join_candles(_nothing_imported(), _no_feed(), self._products)
        self._window = FeatureWindow(spec)
        self._first_ns = start_ns
        #: End of the last closed minute.
        self.closed_until_ns = start_ns
        #: Trades that came too late to change their minute.
        self.beyond_reach = 0

    @property
    def open_since_ns(self) -> int:
        """Start of the oldest minute that may still change."""
        return max(self.closed_until_ns - REACH_NS, self._first_ns)

    @property
    def held_bytes(self) -> int:
        """Memory of the look-back: bars and trades."""
        columns = [*vars(self._trades).values()]
        if self._window.bars is not None:
            columns += vars(self._window.bars).values()
        return sum(each.nbytes for each in columns if isinstance(each, np.ndarray))

    def add(self, trades: TradeColumns) -> None:
        """Add trades in any order, known ones too; those of snapshots and of other products are left out."""
        wanted = np.array([name in self._products for name in trades.products], dtype=np.bool_)
        if len(trades):
            self._added.append(trades.take(wanted[trades.product]))

    def learn(self, until_ns: int) -> None:
        """Close the minutes that end by a time without their rows, which were published before."""
        self._update(until_ns)
        self._forget()

    def close(self, until_ns: int, *, provisional: Collection[str] = ()) -> list[JoinedBar]:
        """Close the minutes that end by a time; return their rows, and those of earlier ones that changed.

        Args:
            until_ns: event time by which every trade of these minutes has come.
            provisional: products of which that is not certain.

        Returns:
            The rows of all products, oldest minute first; none while no other minute is closed. A late trade
            is taken up with the next minute, within `REACH_NS`. Its minute and all that follow are returned.
        """
        from_ns = self._update(until_ns)
        if from_ns is None or self._window.bars is None:
            return []
        grid = compute_features(self._window.bars, self._spec, from_ns=from_ns)
        self._forget()
        bars = []
        for at, start_ns in enumerate(grid.bar_starts_ns.tolist()):
            values = np.ascontiguousarray(grid.values[:, :, at].T)
            rows = tuple(
                OwnRow(
                    product=product,
                    bar_end_ns=start_ns + self._spec.bar_ns,
                    revision=0,
                    provisional=product in provisional,
                    valid=bool(grid.valid[row, at]),
                    reason=int(grid.reason[row, at]),
                    values=values[row, : self._n_own],
                )
                for row, product in enumerate(grid.products)
            )
            bars.append(JoinedBar(start_ns + self._spec.bar_ns, True, rows, values))
        return bars

    def _update(self, until_ns: int) -> int | None:
        """Close minutes; return the start of the first bar that is new or changed, None where nothing is."""
        until_ns = until_ns // self._spec.bar_ns * self._spec.bar_ns
        closed_ns, open_ns = self.closed_until_ns, self.open_since_ns
        if until_ns <= closed_ns:
            return None
        self._take_added(open_ns)
        candles = self._candles_of(open_ns, until_ns)
        from_ns = min(self._first_change_ns(candles, open_ns, closed_ns), closed_ns)
        older = self._candles.loc[_starts_ns(self._candles) < open_ns]
        self._candles = pd.concat([older, candles], ignore_index=True)
        bars = candle_bars(self._candles, self._products, start_ns=from_ns, end_ns=until_ns, spec=self._spec)
        self._window.put(bars)
        self.closed_until_ns = until_ns
        return from_ns

    def _take_added(self, open_ns: int) -> None:
        added = [trades for trades in self._added if len(trades)]
        self._added = []
        if not added:
            return
        news = TradeColumns.concat([TradeColumns.empty(self._products), *added])
        in_reach = news.trade_time_ns >= open_ns
        known = TradeColumns.concat([self._trades, news.take(in_reach)])
        self._trades = clean_trades(known)
        # Before the first minute they only show where the ids go on.
        late = news.take(~in_reach & ~news.is_snapshot)
        if open_ns == self._first_ns:
            self._trades = clean_trades(TradeColumns.concat([self._trades, late]))
        else:
            self.beyond_reach += len(late)

    def _candles_of(self, start_ns: int, end_ns: int) -> pd.DataFrame:
        """Return the candles of a span, day by day: that of a day sees no trade older than an hour before."""
        edges = [start_ns, *range((start_ns // DAY_NS + 1) * DAY_NS, end_ns, DAY_NS), end_ns]
        parts = []
        for first_ns, last_ns in pairwise(edges):
            seen = self._trades.trade_time_ns >= first_ns // DAY_NS * DAY_NS - HOUR_NS
            rolled = roll_up(
                self._trades.take(seen), first_ns, last_ns, interval_ns=self._spec.bar_ns, no_more_follow=True
            )
            parts.append(rolled.candles.astype({"product": object}))
        starts = self._imported["start_ns"]
        imported = self._imported.loc[(starts >= start_ns) & (starts < end_ns)]
        return join_candles(imported, pd.concat(parts, ignore_index=True), self._products)

    def _first_change_ns(self, candles: pd.DataFrame, start_ns: int, end_ns: int) -> int:
        """Return the start of the first minute of a span whose candles are not those known; else its end."""
        before, after = (self._dense(each, start_ns, end_ns) for each in (self._candles, candles))
        differs = ~((before == after) | (np.isnan(before) & np.isnan(after))).all(axis=(0, 2))
        found = np.flatnonzero(differs)
        return start_ns + int(found[0]) * self._spec.bar_ns if found.size else end_ns

    def _dense(self, candles: pd.DataFrame, start_ns: int, end_ns: int) -> NDArray[np.float64]:
        """Return the candles of a span (products, minutes, columns), NaN where there is none."""
        table = np.full((len(self._products), (end_ns - start_ns) // self._spec.bar_ns, len(_VALUES)), np.nan)
        starts = _starts_ns(candles)
        inside = (starts >= start_ns) & (starts < end_ns)
        places = {name: row for row, name in enumerate(self._products)}
        rows = candles["product"].astype(object).map(places.__getitem__).to_numpy(dtype=np.int64)[inside]
        at = (starts[inside] - start_ns) // self._spec.bar_ns
        found = candles.loc[inside, list(_VALUES)]
        table[rows, at] = found.to_numpy(dtype=np.float64, na_value=np.nan)
        return table

    def _forget(self) -> None:
        """Drop what no minute that may change needs."""
        if self._window.bars is None:
            return
        open_ns = self.open_since_ns
        self._window.forget_before(open_ns)
        first_ns = open_ns - candle_reach_ns(self._spec)
        self._candles = self._candles.loc[_starts_ns(self._candles) >= first_ns]
        self._imported = self._imported.loc[self._imported["start_ns"] >= open_ns]
        old = self._trades.trade_time_ns < open_ns
        # The last trade before shows whether the ids go on; the trades are in order of product and time.
        is_last = np.append(self._trades.product[1:] != self._trades.product[:-1], True)[: len(old)]
        is_last[:-1] |= old[:-1] & ~old[1:]
        self._trades = self._trades.take(~old | is_last)


def _starts_ns(candles: pd.DataFrame) -> NDArray[np.int64]:
    return candles["bar_start"].astype("datetime64[ns, UTC]").astype(np.int64).to_numpy()


def _nothing_imported() -> pd.DataFrame:
    numbers = {name: np.empty(0, np.float64) for name in NUMBERS}
    return pd.DataFrame({"product": np.empty(0, object), "start_ns": np.empty(0, np.int64), **numbers})


def _no_feed() -> pd.DataFrame:
    counts = {"n_trades": np.empty(0, np.int64), "signed_volume": np.empty(0, np.float64)}
    return _nothing_imported().assign(**counts)
