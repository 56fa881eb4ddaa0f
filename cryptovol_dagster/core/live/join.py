"""Join the own features of all partitions into whole rows, bar by bar.

Cross features of a bar need the rows of the reference set. A bar is settled once each product of the set has
a row, or its partition is closed past the bar. Then its rows are complete, and equal to those of the assets
bit for bit: both use `with_cross_features`. A revised row of a product of the set may change the cross
features of every product, so all rows of that bar are returned again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cryptovol_dagster.core.features.catalogue import own_feature_names
from cryptovol_dagster.core.features.compute import with_cross_features
from cryptovol_dagster.core.features.grid import FeatureGrid
from cryptovol_dagster.core.features.live import LONGEST_SILENCE_NS, revisable_ns
from cryptovol_dagster.core.specs import TimescaleSpec


@dataclass(frozen=True, eq=False)
class OwnRow:
    """Own features of a product's bar.

    Attributes:
        product: its id.
        bar_end_ns: end of the bar.
        revision: of the row.
        provisional: a revision may follow.
        valid: whether it may be scored.
        reason: code of `Reason`.
        values: own features in the order of `own_feature_names` (n_own,); NaN where there is no value.
    """

    product: str
    bar_end_ns: int
    revision: int
    provisional: bool
    valid: bool
    reason: int
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class JoinedBar:
    """Whole rows of one bar, new or possibly changed since they were returned last.

    Attributes:
        bar_end_ns: end of the bar.
        is_complete: whether the rows of the reference set are all known; else cross features may change.
        rows: own rows, one for each row of `values`.
        values: whole rows (n, n_features), in the order of `feature_names`.
    """

    bar_end_ns: int
    is_complete: bool
    rows: tuple[OwnRow, ...]
    values: NDArray[np.float64]


@dataclass
class _Product:
    """A product's partition, its newest row, and its newest row that is not provisional."""

    partition: int
    newest_ns: int
    solid_ns: int


@dataclass
class _Partition:
    """How far a partition of ticks.raw is closed, by the partition of ticks.features that reports it."""

    closed: dict[int, int] = field(default_factory=dict)
    newest_ns: int = 0

    def until_ns(self, outputs: int) -> int:
        """Return until when it is closed according to all its outputs; 0 where one did not report so far."""
        return min(self.closed.values()) if len(self.closed) == outputs else 0


@dataclass
class _Pending:
    """Products of a bar with rows to return, and when the first of these rows came."""

    since_ns: int
    products: set[str] = field(default_factory=set)


class RowJoin:
    """Joins rows of ticks.features, whatever the order between partitions. Times are in ns.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> join = RowJoin(SPEC, lateness_ns=2 * 10**9, partition_of=len, outputs=1)
        >>> end_ns, nothing = 10 * SPEC.bar_ns, np.full(51, np.nan)
        >>> join.add(OwnRow("BTC-USD", end_ns, 0, False, False, 3, nothing), now_ns=0)
        >>> join.take(now_ns=0, wait_ns=10**9)
        []
        >>> join.add(OwnRow("ETH-USD", end_ns, 0, False, False, 3, nothing), now_ns=0)
        >>> (bar,) = join.take(now_ns=0, wait_ns=10**9)
        >>> bar.is_complete, bar.values.shape
        (True, (2, 55))
    """

    def __init__(
        self, spec: TimescaleSpec, *, lateness_ns: int, partition_of: Callable[[str], int], outputs: int
    ) -> None:
        """Begin without rows.

        Args:
            spec: bars, features and reference set.
            lateness_ns: how long closing a bar waits.
            partition_of: partition of ticks.raw of a product.
            outputs: partitions of ticks.features in which a partition of ticks.raw reports its closing.
        """
        self._spec, self._partition_of, self._outputs = spec, partition_of, outputs
        self._names = own_feature_names(spec)
        self._revisable_ns = revisable_ns(spec, lateness_ns)
        self._members = {product: partition_of(product) for product in spec.reference_set}
        self._partitions: dict[int, _Partition] = {}
        self._products: dict[str, _Product] = {}
        self._bars: dict[int, dict[str, OwnRow]] = {}
        self._pending: dict[int, _Pending] = {}
        #: Partitions with rows that were lost, and until when they were.
        self._lost: set[int] = set()
        self._lost_until_ns: dict[int, int] = {}
        #: Bars that were returned before they were settled.
        self._incomplete: set[int] = set()

    @property
    def n_rows(self) -> int:
        """Number of rows kept."""
        return sum(map(len, self._bars.values()))

    def add(self, row: OwnRow, now_ns: int) -> None:
        """Add a new or revised row; one with an earlier revision than the known one is left out.

        Args:
            row: of ticks.features.
            now_ns: a monotonic clock.
        """
        number, end_ns = self._partition_of(row.product), row.bar_end_ns
        self._partition_at(number, end_ns)
        bar = self._bars.setdefault(end_ns, {})
        known = bar.get(row.product)
        if known is not None and known.revision > row.revision:
            return
        bar[row.product] = row
        product = self._products.setdefault(row.product, _Product(number, end_ns, end_ns))
        product.newest_ns = max(product.newest_ns, end_ns)
        if not row.provisional:
            product.solid_ns = max(product.solid_ns, end_ns)
        pending = self._pending.setdefault(end_ns, _Pending(now_ns))
        pending.products |= {*bar} if row.product in self._members else {row.product}

    def close(self, partition: int, output: int, until_ns: int) -> int:
        """Note that all rows of bars that end by a time are published; return until when that is known.

        Args:
            partition: of ticks.raw.
            output: partition of ticks.features in which that was reported.
            until_ns: event time.
        """
        known = self._partition_at(partition, until_ns)
        known.closed[output] = until_ns
        return known.until_ns(self._outputs)

    def lose(self, partition: int) -> None:
        """Note that rows of a partition of ticks.raw before the next record of it cannot be read any more.

        A closing does not settle the bars before that record: their rows existed.
        """
        self._lost.add(partition)

    def take(self, now_ns: int, wait_ns: int) -> list[JoinedBar]:
        """Return the rows to publish, oldest bar first: of bars that are settled or waited too long.

        Args:
            now_ns: a monotonic clock.
            wait_ns: how long a row waits for those of the reference set.
        """
        joined = []
        for end_ns in sorted(self._pending.keys() | self._incomplete):
            is_complete, pending = self._is_settled(end_ns), self._pending.get(end_ns)
            was_incomplete = end_ns in self._incomplete
            if is_complete:
                self._incomplete.discard(end_ns)
            elif pending is None or now_ns - pending.since_ns < wait_ns:
                continue
            else:
                self._incomplete.add(end_ns)
            self._pending.pop(end_ns, None)
            everybody = is_complete and was_incomplete
            products = {*self._bars[end_ns]} if everybody or pending is None else pending.products
            joined.append(self._joined(end_ns, is_complete, products))
        return joined

    def returned_until_ns(self, partition: int) -> int:
        """Return until when all rows of a partition of ticks.raw were returned; 0 where none is closed."""
        known = self._partitions.get(partition)
        until_ns = 0 if known is None else known.until_ns(self._outputs)
        for end_ns, pending in self._pending.items():
            if any(self._partition_of(product) == partition for product in pending.products):
                until_ns = min(until_ns, end_ns - self._spec.bar_ns)
        return until_ns

    def open_since_ns(self, product: str) -> int:
        """Return from which bar end on a row of a product may come or change; 0 before any is known."""
        known = self._products.get(product)
        partition = self._partitions.get(self._partition_of(product))
        if partition is None:
            return 0
        solid_ns = 0 if known is None else min(known.solid_ns, partition.newest_ns)
        return max(solid_ns, partition.newest_ns - LONGEST_SILENCE_NS) - self._revisable_ns

    def returned_since_ns(self, product: str) -> int:
        """Return from which bar end on `take` may return a row of a product: changed, or by the set."""
        of_set = [self.open_since_ns(member) for member in self._members if member in self._products]
        return min([self.open_since_ns(product), *of_set])

    def forget(self) -> None:
        """Drop rows that neither a revision of their own nor one of another product needs any more."""
        own = {name: self.open_since_ns(name) for name in self._products}
        # A revision of the set changes every product of a bar, so all rows stay as long as it can come.
        of_set = min((own[name] for name in self._members if name in own), default=2**62)
        # And any product's revision needs the rows of the set.
        of_any = min(own.values(), default=0)
        for end_ns in [end_ns for end_ns in self._bars if end_ns < of_set and end_ns not in self._pending]:
            kept = {
                name: row
                for name, row in self._bars[end_ns].items()
                if end_ns >= (of_any if name in self._members else own[name])
            }
            if kept:
                self._bars[end_ns] = kept
            else:
                del self._bars[end_ns]
                self._incomplete.discard(end_ns)

    def _partition_at(self, number: int, time_ns: int) -> _Partition:
        """Return a partition that is heard of at a time; without its rows where another recording began."""
        known = self._partitions.setdefault(number, _Partition())
        if time_ns < known.newest_ns - LONGEST_SILENCE_NS - self._revisable_ns:
            for name in [name for name, each in self._products.items() if each.partition == number]:
                del self._products[name]
                for bar in self._bars.values():
                    bar.pop(name, None)
            self._bars = {end_ns: bar for end_ns, bar in self._bars.items() if bar}
            self._incomplete &= self._bars.keys()
            self._pending = {end_ns: each for end_ns, each in self._pending.items() if end_ns in self._bars}
            for end_ns, each in self._pending.items():
                each.products &= self._bars[end_ns].keys()
            known = self._partitions[number] = _Partition()
        if number in self._lost:
            self._lost.discard(number)
            self._lost_until_ns[number] = time_ns
        known.newest_ns = max(known.newest_ns, time_ns)
        return known

    def _is_settled(self, end_ns: int) -> bool:
        bar, members = self._bars[end_ns], self._members.items()
        return all(member in bar or self._is_closed(number, end_ns) for member, number in members)

    def _is_closed(self, number: int, end_ns: int) -> bool:
        known = self._partitions.get(number)
        is_known = end_ns > self._lost_until_ns.get(number, 0)
        return is_known and known is not None and known.until_ns(self._outputs) >= end_ns

    def _joined(self, end_ns: int, is_complete: bool, products: set[str]) -> JoinedBar:
        bar = self._bars[end_ns]
        wanted = sorted(products)
        names = (*wanted, *(name for name in self._members if name in bar and name not in products))
        rows = [bar[name] for name in names]
        own = FeatureGrid(
            products=names,
            start_ns=end_ns - self._spec.bar_ns,
            bar_ns=self._spec.bar_ns,
            names=self._names,
            values=np.stack([row.values for row in rows], axis=1)[:, :, None],
            valid=np.array([[row.valid] for row in rows]),
            reason=np.array([[row.reason] for row in rows], dtype=np.int8),
        )
        whole = with_cross_features(own, self._spec).values[:, : len(wanted), 0]
        return JoinedBar(end_ns, is_complete, tuple(rows[: len(wanted)]), np.ascontiguousarray(whole.T))
