"""Cleaning of raw ticks: the result is ordered, without repeats, late ticks and impossible quotes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryptovol_dagster.core.market.ticks import UNKNOWN_SEQUENCE, TickColumns, TradeColumns

#: Increased when cleaning keeps other rows than before.
TICKS_VERSION = 1


@dataclass(frozen=True)
class TickCounts:
    """Rows by outcome of cleaning; `read` equals the sum of all the others.

    Attributes:
        read: rows read.
        kept: rows in the result.
        duplicates: rows whose key (or content, without a sequence number) occurred before.
        late: rows older than their product's newest by more than the limit.
        nan_quote: bid or ask absent or not finite.
        non_positive_quote: bid or ask at or below zero.
        crossed_quote: bid above ask.
    """

    read: int = 0
    kept: int = 0
    duplicates: int = 0
    late: int = 0
    nan_quote: int = 0
    non_positive_quote: int = 0
    crossed_quote: int = 0

    @property
    def rejected(self) -> int:
        """Number of rows without a usable quote."""
        return self.nan_quote + self.non_positive_quote + self.crossed_quote

    def __add__(self, other: TickCounts) -> TickCounts:
        return TickCounts(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )


@dataclass(frozen=True, eq=False)
class CleanedTicks:
    """Ticks ordered by (product, event time), stable, and the number of rows left out."""

    ticks: TickColumns
    counts: TickCounts


def clean_ticks(ticks: TickColumns, late_after_ns: int) -> CleanedTicks:
    """Remove rows that are repeated, too late or without a usable quote, and order the rest.

    The steps, in this order, for each product in offset order:

    1. duplicates by (connection, sequence, event, entry), or by content where the sequence is unknown: the
       first stays;
    2. late rows: older than the running maximum of event time by more than `late_after_ns`;
    3. quotes that are absent or not finite, non-positive, or crossed (a locked quote, bid = ask, is a quote).

    A change of connection sets `gap_before`. A flag on a row that step 2 or 3 leaves out moves to the next
    row kept, so that no loss is forgotten.

    Args:
        ticks: rows in offset order.
        late_after_ns: allowed disorder.

    Returns:
        The kept rows, ordered by (product, event time); rows of equal time keep their offset order.

    Examples:
        >>> from cryptovol_dagster.core.market.synthetic import synthetic_ticks
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> ticks, _ = synthetic_ticks(SPEC, 1, products=("BTC-USD",))
        >>> twice = TickColumns.concat([ticks, ticks])
        >>> counts = clean_ticks(twice, late_after_ns=2_000_000_000).counts
        >>> counts.read, counts.kept, counts.duplicates
        (6, 3, 3)
    """
    judged = _judge(ticks, late_after_ns)
    kept = judged.ticks if judged.verdict is None else judged.ticks.take(judged.verdict == _KEPT)
    return CleanedTicks(order_ticks(kept), judged.counts(slice(None)))


def flag_gaps(ticks: TickColumns, gaps: Mapping[str, NDArray[np.int64]]) -> TickColumns:
    """Flag each row before which its connection lost messages, counted from its product's previous row.

    Args:
        ticks: rows in any order; flags that are set stay set. Rows without a sequence number get none.
        gaps: first missing number of each gap, ascending, by connection id.

    Returns:
        The same rows. A product's first row of a connection has no previous row to miss anything from.
    """
    flags = ticks.gap_before.copy()
    for code, name in enumerate(ticks.connections):
        firsts = gaps.get(name)
        if firsts is None:
            continue
        of_connection = (ticks.connection == code) & (ticks.sequence_num != UNKNOWN_SEQUENCE)
        for of_product in np.unique(ticks.product[of_connection]):
            rows = np.flatnonzero(of_connection & (ticks.product == of_product))
            rows = rows[np.argsort(ticks.sequence_num[rows], kind="stable")]
            passed = np.searchsorted(firsts, ticks.sequence_num[rows])
            flags[rows[1:]] |= np.diff(passed) > 0
    return replace(ticks, gap_before=flags)


def recent_ticks(
    ticks: TickColumns, gaps: Mapping[str, NDArray[np.int64]], late_after_ns: int, from_ns: int
) -> CleanedTicks:
    """Return the rows of a stream that must be kept, so that later rows are cleaned as if all had been kept.

    Args:
        ticks: raw rows, each product's in offset order.
        gaps: as for `flag_gaps`; the kept rows are flagged by them again.
        late_after_ns: as for `clean_ticks`.
        from_ns: event time from which on cleaned rows must be correct.

    Returns:
        Raw rows: each product's from its first at or after `from_ns` on (at least its last), without repeats.
        They keep the flags whose evidence is dropped. The counts are those of cleaning these rows.
    """
    whole = _judge(flag_gaps(ticks, gaps), late_after_ns)
    raw = ticks if whole.order is None else ticks.take(whole.order)
    first_times = (
        np.arange(len(raw)) if whole.verdict is None else np.flatnonzero(whole.verdict != _DUPLICATE)
    )
    wanted: list[NDArray[np.int64]] = []
    for code in range(len(raw.products)):
        own = first_times[raw.product[first_times] == code]
        recent = np.flatnonzero(raw.event_time_ns[own] >= from_ns)
        wanted.append(own[recent[0] :] if len(recent) else own[-1:])
    rows = np.concatenate([np.empty(0, np.int64), *wanted])
    kept = raw.take(rows)
    again = _judge(flag_gaps(kept, gaps), late_after_ns)
    lacking = whole.ticks.gap_before[rows] & ~again.ticks.gap_before
    return CleanedTicks(replace(kept, gap_before=kept.gap_before | lacking), again.counts(slice(None)))


def order_ticks(ticks: TickColumns) -> TickColumns:
    """Return the rows ordered by (product, event time); rows of equal time keep their order.

    Examples:
        >>> from cryptovol_dagster.core.market.synthetic import synthetic_ticks
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> ticks, _ = synthetic_ticks(SPEC, 1, products=("BTC-USD",))
        >>> backwards = ticks.take(slice(None, None, -1))
        >>> bool((order_ticks(backwards).event_time_ns == ticks.event_time_ns).all())
        True
    """
    product, times = ticks.product, ticks.event_time_ns
    ordered = (product[1:] > product[:-1]) | ((product[1:] == product[:-1]) & (times[1:] >= times[:-1]))
    return ticks if ordered.all() else ticks.take(np.lexsort((times, product)))


class TickCleaner:
    """`clean_ticks` for a stream in chunks: the same rows and counts, with bounded memory.

    It keeps each product's raw rows of the last `horizon_ns` of event time, and its last row. The bound has
    two effects. A repeat that comes later than the horizon is counted as late instead of as a duplicate (it
    is older than its product's newest). Content without sequence numbers is compared within the horizon
    only. Otherwise the result equals that of cleaning everything at once.
    """

    def __init__(self, late_after_ns: int, horizon_ns: int, products: Sequence[str] = ()) -> None:
        """Allow `late_after_ns` of disorder; find repeats within `horizon_ns`, which must not be shorter.

        Args:
            late_after_ns: as for `clean_ticks`.
            horizon_ns: how much event time is kept.
            products: the first of `products`, in this order; others follow as they appear.

        Raises:
            ValueError: the horizon is shorter than the allowed disorder.
        """
        if horizon_ns < late_after_ns:
            raise ValueError(f"horizon of {horizon_ns} ns is shorter than the disorder of {late_after_ns} ns")
        self._late_after_ns, self._horizon_ns = late_after_ns, horizon_ns
        self._memory = TickColumns.empty(products)

    @property
    def products(self) -> tuple[str, ...]:
        """Products seen so far; their order never changes."""
        return self._memory.products

    def add(self, ticks: TickColumns) -> CleanedTicks:
        """Clean the next rows in offset order.

        Returns:
            The rows kept, grouped by product in offset order (rows of a later chunk may be older by less
            than the allowed disorder, so joined chunks need `order_ticks`), and this chunk's counts.
        """
        remembered = len(self._memory)
        together = TickColumns.concat([self._memory, ticks])
        judged = _judge(together, self._late_after_ns)
        fresh = np.ones(len(together), dtype=np.bool_) if judged.order is None else judged.order >= remembered
        if judged.order is None:
            fresh[:remembered] = False
        kept = fresh if judged.verdict is None else fresh & (judged.verdict == _KEPT)
        self._memory = _remember(together, self._horizon_ns)
        return CleanedTicks(judged.ticks.take(kept), judged.counts(fresh))


def _remember(ticks: TickColumns, horizon_ns: int) -> TickColumns:
    """Return each product's last `horizon_ns` of event time, and its last row."""
    wanted = np.zeros(len(ticks), dtype=np.bool_)
    for code in range(len(ticks.products)):
        own = np.flatnonzero(ticks.product == code)
        if len(own):
            times = ticks.event_time_ns[own]
            wanted[own[times >= times.max() - horizon_ns]] = True
            wanted[own[-1]] = True
    return ticks.take(wanted)


#: Verdicts on a row, in the order of `TickCounts` after `read`.
_KEPT, _DUPLICATE, _LATE, _NAN, _NON_POSITIVE, _CROSSED = range(6)


@dataclass(frozen=True, eq=False)
class _Judged:
    """Rows grouped by product, in offset order within each, with a verdict per row.

    Attributes:
        ticks: the rows, their `gap_before` completed.
        verdict: uint8 per row; None where all are kept.
        order: earlier position of each row; None where no row moved.
    """

    ticks: TickColumns
    verdict: NDArray[np.uint8] | None
    order: NDArray[np.int64] | None

    def counts(self, rows: NDArray[np.bool_] | slice) -> TickCounts:
        """Return the counts of some of the rows."""
        if self.verdict is None:
            read = int(rows.sum()) if isinstance(rows, np.ndarray) else len(self.ticks)
            return TickCounts(read=read, kept=read)
        tally = np.bincount(self.verdict[rows], minlength=6).tolist()
        return TickCounts(sum(tally), *tally)


def _judge(ticks: TickColumns, late_after_ns: int) -> _Judged:
    order = _by_product(ticks.product)
    if order is not None:
        ticks = ticks.take(order)
    starts = _starts(ticks.product)
    times = ticks.event_time_ns
    nan_quote = ~(np.isfinite(ticks.bid) & np.isfinite(ticks.ask))
    with np.errstate(invalid="ignore"):
        unusable = nan_quote | (ticks.bid <= 0) | (ticks.ask <= 0) | (ticks.bid > ticks.ask)
    late = None
    if ((times[1:] < times[:-1]) & ~starts[1:]).any():
        late = _late(times, starts, late_after_ns)
    repeated = _duplicates(ticks)

    verdict = None
    if unusable.any() or repeated is not None or (late is not None and late.any()):
        verdict = np.zeros(len(ticks), dtype=np.uint8)
        verdict[unusable] = _CROSSED
        verdict[unusable & ((ticks.bid <= 0) | (ticks.ask <= 0))] = _NON_POSITIVE
        verdict[nan_quote] = _NAN
        if late is not None:
            verdict[late] = _LATE
        if repeated is not None:
            verdict[repeated] = _DUPLICATE
    gap_before = _gap_flags(ticks, starts, verdict)
    return _Judged(replace(ticks, gap_before=gap_before), verdict, order)


def _gap_flags(
    ticks: TickColumns, starts: NDArray[np.bool_], verdict: NDArray[np.uint8] | None
) -> NDArray[np.bool_]:
    """Return `gap_before` with changes of connection added, and moved on from the rows that are left out.

    Repeats are ignored: they contain no information on losses.
    """
    if verdict is None:
        changed = np.zeros(len(ticks), dtype=np.bool_)
        np.not_equal(ticks.connection[1:], ticks.connection[:-1], out=changed[1:])
        return ticks.gap_before | (changed & ~starts)
    flags = np.zeros(len(ticks), dtype=np.bool_)
    first_times = np.flatnonzero(verdict != _DUPLICATE)
    product, connection = ticks.product[first_times], ticks.connection[first_times]
    own_starts = _starts(product)
    changed = np.zeros(len(first_times), dtype=np.bool_)
    np.not_equal(connection[1:], connection[:-1], out=changed[1:])
    own_flags = ticks.gap_before[first_times] | (changed & ~own_starts)
    flags[first_times] = _carry_flags(own_flags, verdict[first_times] != _KEPT, own_starts)
    return flags


def clean_trades(trades: TradeColumns) -> TradeColumns:
    """Return each trade once, ordered by (product, time, id); those of snapshots are history and left out."""
    trades = trades.take(~trades.is_snapshot)
    order = np.lexsort((trades.trade_id, trades.product))
    same = np.zeros(len(trades), dtype=np.bool_)
    same[1:] = (np.diff(trades.trade_id[order]) == 0) & (np.diff(trades.product[order]) == 0)
    trades = trades.take(np.sort(order[~same]))
    return trades.take(np.lexsort((trades.trade_id, trades.trade_time_ns, trades.product)))


def _by_product(product: NDArray[np.int32]) -> NDArray[np.int64] | None:
    """Return the stable order by product, or None where the rows have it."""
    if not (product[1:] < product[:-1]).any():
        return None
    # NumPy sorts 8- and 16-bit keys by radix, several times faster than wider ones.
    narrow = product.astype(np.uint8 if product.max() < 256 else np.int32)
    return np.argsort(narrow, kind="stable")


def _starts(product: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return where a product's rows begin."""
    starts = np.ones(len(product), dtype=np.bool_)
    np.not_equal(product[1:], product[:-1], out=starts[1:])
    return starts


def _late(
    times: NDArray[np.int64], first_of_product: NDArray[np.bool_], late_after_ns: int
) -> NDArray[np.bool_]:
    late = np.zeros(len(times), dtype=np.bool_)
    edges = [*np.flatnonzero(first_of_product).tolist(), len(times)]
    for start, stop in pairwise(edges):
        own = times[start:stop]
        late[start:stop] = np.maximum.accumulate(own) - own > late_after_ns
    return late


def _carry_flags(
    flags: NDArray[np.bool_], dropped: NDArray[np.bool_], first_of_product: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Move a dropped row's flag to the next kept row of its product."""
    kept = np.flatnonzero(~dropped)
    lost = np.flatnonzero(flags & dropped)
    heir = np.searchsorted(kept, lost)
    product_of = np.cumsum(first_of_product)
    has_heir = heir < len(kept)
    lost, heir = lost[has_heir], kept[heir[has_heir]]
    flags = flags.copy()
    flags[heir[product_of[heir] == product_of[lost]]] = True
    return flags


def _duplicates(ticks: TickColumns) -> NDArray[np.bool_] | None:
    """Return which rows (ordered by product) repeat an earlier one; None where all differ."""
    known = ticks.sequence_num != UNKNOWN_SEQUENCE
    if known.all():
        return _repeated_keys(ticks)
    if not known.any():
        return _repeated_contents(ticks)
    repeated = np.zeros(len(ticks), dtype=np.bool_)
    for rows, find in (
        (np.flatnonzero(known), _repeated_keys),
        (np.flatnonzero(~known), _repeated_contents),
    ):
        found = find(ticks.take(rows))
        if found is not None:
            repeated[rows] = found
    return repeated if repeated.any() else None


def _repeated_keys(ticks: TickColumns) -> NDArray[np.bool_] | None:
    place = (ticks.event_index.astype(np.int32) << 16) | ticks.entry_index
    sequence, run = ticks.sequence_num, _starts(ticks.product)
    run[1:] |= ticks.connection[1:] != ticks.connection[:-1]
    ascends = (sequence[1:] > sequence[:-1]) | ((sequence[1:] == sequence[:-1]) & (place[1:] > place[:-1]))
    if (ascends | run[1:]).all():
        # Keys that only ascend within a connection differ, provided that no connection comes back later.
        heads = np.flatnonzero(run)
        pairs = (
            ticks.product[heads].astype(np.int64) * max(len(ticks.connections), 1) + ticks.connection[heads]
        )
        if len(np.unique(pairs)) == len(heads):
            return None
    return _repeats((ticks.product, ticks.connection, sequence, place))


def _repeated_contents(ticks: TickColumns) -> NDArray[np.bool_] | None:
    times = ticks.event_time_ns
    if ((times[1:] > times[:-1]) | _starts(ticks.product)[1:]).all():
        return None
    # Compared as bits, so that an absent number equals an absent number.
    numbers = (ticks.bid, ticks.ask, ticks.bid_size, ticks.ask_size, ticks.price)
    return _repeats((ticks.product, times, *(number.view(np.int64) for number in numbers)))


def _repeats(keys: tuple[NDArray[Any], ...]) -> NDArray[np.bool_] | None:
    """Return which rows have the same keys as an earlier row."""
    order = np.lexsort(keys[::-1])
    same = np.ones(max(len(order) - 1, 0), dtype=np.bool_)
    for key in keys:
        ordered = key[order]
        same &= ordered[1:] == ordered[:-1]
    if not same.any():
        return None
    repeated = np.zeros(len(order), dtype=np.bool_)
    # The sort is stable: of equal rows all but the first in offset order are repeats.
    repeated[order[1:][same]] = True
    return repeated
