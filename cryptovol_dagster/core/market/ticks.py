"""Ticks and trades as columns: the boundary between what the feed said and what the market did.

Belongs here: the columnar form, its lake form, and the cleaning that every path (hourly asset, replay,
live) shares. Does not belong here: reading files, parsing JSON, or anything that knows of bars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

#: dtype of each column of `TickColumns`, in order.
TICK_DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "product": np.int32,
        "connection": np.int32,
        "event_time_ns": np.int64,
        "sequence_num": np.int64,
        "event_index": np.int16,
        "entry_index": np.int16,
        "bid": np.float64,
        "ask": np.float64,
        "bid_size": np.float64,
        "ask_size": np.float64,
        "price": np.float64,
        "gap_before": np.bool_,
    }.items()
}
#: dtype of each array column of `TradeColumns`, in order; `trade_id` is compared, never computed with.
TRADE_DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "product": np.int32,
        "trade_time_ns": np.int64,
        "price": np.float64,
        "size": np.float64,
        "buy": np.bool_,
        "trade_id": np.int64,
        "is_snapshot": np.bool_,
    }.items()
}
UNKNOWN_SEQUENCE = -1
#: Raised when cleaning keeps other rows than before.
TICKS_VERSION = 1


class ColumnsError(ValueError):
    """Columns that are missing, of unequal length, or point outside their dictionary."""


class _Columns:
    """Shared behaviour of frozen dataclasses whose array fields are equally long."""

    _DTYPES: Mapping[str, np.dtype[Any]]
    #: index column → (field that holds its dictionary, name of the string column in the lake)
    _DICTIONARIES: Mapping[str, tuple[str, str]]

    def __len__(self) -> int:
        return len(getattr(self, next(iter(self._DTYPES))))

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in self._DTYPES}
        if len(set(lengths.values())) > 1:
            raise ColumnsError(f"columns differ in length: {lengths}")
        for index, (dictionary, _) in self._DICTIONARIES.items():
            codes, size = getattr(self, index), len(getattr(self, dictionary))
            if len(codes) and not (codes.min() >= 0 and codes.max() < size):
                raise ColumnsError(f"column {index!r} points outside its {size} {dictionary}")

    def take(self, rows: NDArray[Any] | slice) -> Self:
        """The given rows (indices, mask or slice), in that order."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return type(self)(**columns | {name: columns[name][rows] for name in self._DTYPES})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """Build from a mapping of arrays; keys that are no column of ours (counters, say) are not looked at.

        Args:
            arrays: every field by name; dictionaries as sequences of strings.

        Raises:
            ColumnsError: a column is missing, of another length, or points outside its dictionary.
        """
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        missing = [name for name in names if name not in arrays]
        if missing:
            raise ColumnsError(f"columns are missing: {', '.join(missing)}")
        return cls(
            **{
                name: np.ascontiguousarray(arrays[name], dtype=cls._DTYPES[name])
                if name in cls._DTYPES
                else tuple(arrays[name])
                for name in names
            }
        )

    @classmethod
    def empty(cls, products: Sequence[str] = ()) -> Self:
        """No rows, for the given products."""
        arrays: dict[str, Any] = {name: np.empty(0, dtype) for name, dtype in cls._DTYPES.items()}
        arrays |= {dictionary: () for dictionary, _ in cls._DICTIONARIES.values()}
        return cls.from_arrays(arrays | {"products": tuple(products)})

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """All rows of `parts`, in order; dictionaries are united in order of first appearance.

        Raises:
            ColumnsError: `parts` is empty.
        """
        if not parts:
            raise ColumnsError("nothing to concatenate")
        if len(parts) == 1:
            return parts[0]
        united: dict[str, Any] = {}
        for name in cls._DTYPES:
            columns = [getattr(part, name) for part in parts]
            if name in cls._DICTIONARIES:
                dictionary = cls._DICTIONARIES[name][0]
                words = tuple(dict.fromkeys(word for part in parts for word in getattr(part, dictionary)))
                place = {word: code for code, word in enumerate(words)}
                columns = [
                    column
                    if (own := getattr(part, dictionary)) == words[: len(own)]
                    else np.array([place[word] for word in own], dtype=np.int32)[column]
                    for part, column in zip(parts, columns, strict=True)
                ]
                united[dictionary] = words
            united[name] = np.concatenate(columns)
        return cls(**united)

    def to_table(self) -> pa.Table:
        """Long form for the lake: one row a tick, index columns as dictionary-encoded strings."""
        columns: dict[str, pa.Array | pa.ChunkedArray] = {}
        for name in self._DTYPES:
            values = getattr(self, name)
            if name in self._DICTIONARIES:
                dictionary, word = self._DICTIONARIES[name]
                words = pa.array(getattr(self, dictionary), type=pa.string())
                columns[word] = pa.DictionaryArray.from_arrays(pa.array(values), words)
            else:
                columns[name] = pa.array(values)
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table, *, products: Sequence[str] | None = None) -> Self:
        """Read `to_table`'s form back, row for row.

        Args:
            table: also one joined from several partitions (their dictionaries are united).
            products: the dictionary of products to use, so that hours in which a product was silent still
                list it; by default the table's own.

        Raises:
            ColumnsError: a column is missing, or a row is of a product that `products` does not list.
        """
        arrays: dict[str, Any] = {}
        for name, dtype in cls._DTYPES.items():
            column = cls._DICTIONARIES[name][1] if name in cls._DICTIONARIES else name
            if column not in table.column_names:
                raise ColumnsError(f"column {column!r} is missing")
            values = table.column(column)
            if name not in cls._DICTIONARIES:
                arrays[name] = np.ascontiguousarray(values.to_numpy(), dtype=dtype)
                continue
            encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
            whole = encoded.unify_dictionaries().combine_chunks()
            whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
            words: tuple[str, ...] = tuple(whole.dictionary.to_pylist())
            codes = whole.indices.to_numpy(zero_copy_only=False).astype(np.int32)
            if name == "product" and products is not None:
                used = {words[code] for code in np.unique(codes)}
                if strangers := sorted(used - set(products)):
                    raise ColumnsError(f"rows of products that were not asked for: {', '.join(strangers)}")
                place = np.array([products.index(w) if w in products else -1 for w in words], dtype=np.int32)
                codes, words = (place[codes] if len(codes) else codes), tuple(products)
            arrays[name], arrays[cls._DICTIONARIES[name][0]] = codes, words
        return cls.from_arrays(arrays)


@dataclass(frozen=True, eq=False)
class TickColumns(_Columns):
    """Ticker entries as equally long columns, in offset order unless said otherwise.

    Attributes:
        products: product ids, indexed by `product`.
        product: index into `products` (int32).
        connections: connection ids, indexed by `connection`.
        connection: index into `connections` (int32).
        event_time_ns: the exchange's time, UTC nanoseconds (int64).
        sequence_num: of the frame within its connection (int64); −1 unknown.
        event_index: of the event within its frame (int16).
        entry_index: of the entry within its event (int16).
        bid: best bid (float64); NaN absent.
        ask: best ask (float64); NaN absent.
        bid_size: quantity at the best bid (float64); NaN absent.
        ask_size: quantity at the best ask (float64); NaN absent.
        price: last trade (float64); NaN absent.
        gap_before: messages were lost between the product's previous entry and this one (bool).
    """

    products: tuple[str, ...]
    product: NDArray[np.int32]
    connections: tuple[str, ...]
    connection: NDArray[np.int32]
    event_time_ns: NDArray[np.int64]
    sequence_num: NDArray[np.int64]
    event_index: NDArray[np.int16]
    entry_index: NDArray[np.int16]
    bid: NDArray[np.float64]
    ask: NDArray[np.float64]
    bid_size: NDArray[np.float64]
    ask_size: NDArray[np.float64]
    price: NDArray[np.float64]
    gap_before: NDArray[np.bool_]

    _DTYPES = TICK_DTYPES
    _DICTIONARIES = {"product": ("products", "product_id"), "connection": ("connections", "connection_id")}  # noqa: RUF012 - a constant, not a field


@dataclass(frozen=True, eq=False)
class TradeColumns(_Columns):
    """Trades as equally long columns.

    Attributes:
        products: product ids, indexed by `product`.
        product: index into `products` (int32).
        trade_time_ns: the trade's own time, UTC nanoseconds (int64).
        price: in quote currency (float64).
        size: in base currency (float64).
        buy: the taker bought (bool).
        trade_id: the exchange's id, unique within a product (int64).
        is_snapshot: the trade came in a snapshot, which is history (bool).
    """

    products: tuple[str, ...]
    product: NDArray[np.int32]
    trade_time_ns: NDArray[np.int64]
    price: NDArray[np.float64]
    size: NDArray[np.float64]
    buy: NDArray[np.bool_]
    trade_id: NDArray[np.int64]
    is_snapshot: NDArray[np.bool_]

    _DTYPES = TRADE_DTYPES
    _DICTIONARIES = {"product": ("products", "product_id")}  # noqa: RUF012 - a constant, not a field


@dataclass(frozen=True)
class TickCounts:
    """What cleaning did; `read` equals the sum of all the others.

    Attributes:
        read: rows given.
        kept: rows in the result.
        duplicates: rows whose key (or content, without a sequence number) had been seen.
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
        """Rows without a usable quote."""
        return self.nan_quote + self.non_positive_quote + self.crossed_quote

    def __add__(self, other: TickCounts) -> TickCounts:
        return TickCounts(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )


@dataclass(frozen=True, eq=False)
class CleanedTicks:
    """Ticks ordered by (product, event time), stable, and what was left out."""

    ticks: TickColumns
    counts: TickCounts


def clean_ticks(ticks: TickColumns, late_after_ns: int) -> CleanedTicks:
    """Leave out what was said twice, too late or without a usable quote, and order the rest.

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
    """What must be kept of a stream so that what comes later is cleaned as if everything had been kept.

    Args:
        ticks: raw rows, each product's in offset order.
        gaps: as for `flag_gaps`; what is kept is flagged by them anew.
        late_after_ns: as for `clean_ticks`.
        from_ns: event time from which on cleaned rows must be right.

    Returns:
        Raw rows: each product's from its first at or after `from_ns` on (at least its last), without repeats.
        They carry the flags for which the evidence is not kept. The counts are those of cleaning these rows.
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
    """Rows ordered by (product, event time); rows of equal time keep their order."""
    product, times = ticks.product, ticks.event_time_ns
    ordered = (product[1:] > product[:-1]) | ((product[1:] == product[:-1]) & (times[1:] >= times[:-1]))
    return ticks if ordered.all() else ticks.take(np.lexsort((times, product)))


class TickCleaner:
    """`clean_ticks` for a stream in chunks: the same rows and counts, with bounded memory.

    It remembers each product's raw rows of the last `horizon_ns` of event time, and its last row.
    What that bound means: a repeat that comes later than the horizon is counted as late instead of as a
    duplicate (it is older than its product's newest), and content without sequence numbers is compared
    within the horizon only. Nothing else differs from cleaning the whole at once.
    """

    def __init__(self, late_after_ns: int, horizon_ns: int, products: Sequence[str] = ()) -> None:
        """Allow `late_after_ns` of disorder; look for repeats within `horizon_ns`, which must not be less.

        Args:
            late_after_ns: as for `clean_ticks`.
            horizon_ns: how much event time is remembered.
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
        """Products met so far; their order never changes."""
        return self._memory.products

    def add(self, ticks: TickColumns) -> CleanedTicks:
        """Clean the next rows in offset order.

        Returns:
            The rows kept, grouped by product in offset order (rows of a later chunk may be older by less
            than the allowed disorder, so `order_ticks` is for whoever joins chunks), and this chunk's counts.
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
    """Each product's last `horizon_ns` of event time, and its last row."""
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
    """Rows grouped by product, in offset order within each, with a verdict on every one.

    Attributes:
        ticks: the rows, their `gap_before` completed.
        verdict: uint8 a row; None where all are kept.
        order: where each row stood before; None where it did not move.
    """

    ticks: TickColumns
    verdict: NDArray[np.uint8] | None
    order: NDArray[np.int64] | None

    def counts(self, rows: NDArray[np.bool_] | slice) -> TickCounts:
        """Counts over some of the rows."""
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
    """`gap_before` with changes of connection added, and moved on from the rows that are left out.

    Repeats are passed over as if they had not come: they say nothing new about losses.
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
    """Trades once each, ordered by (product, time, id); those of snapshots are history and left out."""
    trades = trades.take(~trades.is_snapshot)
    order = np.lexsort((trades.trade_id, trades.product))
    same = np.zeros(len(trades), dtype=np.bool_)
    same[1:] = (np.diff(trades.trade_id[order]) == 0) & (np.diff(trades.product[order]) == 0)
    trades = trades.take(np.sort(order[~same]))
    return trades.take(np.lexsort((trades.trade_id, trades.trade_time_ns, trades.product)))


def _by_product(product: NDArray[np.int32]) -> NDArray[np.int64] | None:
    """Stable order by product, or None where the rows have it."""
    if not (product[1:] < product[:-1]).any():
        return None
    # NumPy sorts 8- and 16-bit keys by radix, several times faster than wider ones.
    narrow = product.astype(np.uint8 if product.max() < 256 else np.int32)
    return np.argsort(narrow, kind="stable")


def _starts(product: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Where a product's rows begin."""
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
    """Rows (ordered by product) that repeat an earlier one; None where all differ."""
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
    """Rows whose keys all equal those of an earlier row."""
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
