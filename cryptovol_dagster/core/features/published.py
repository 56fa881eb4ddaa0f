"""Published rows of the bars that may still change, and the rows to publish next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cryptovol_dagster.core.features.grid import FeatureGrid
from cryptovol_dagster.core.features.live_rows import PublishedRow

#: A relative difference of a feature below this is rounding of a formula, not a change.
TOLERANCE = 1e-13


class Changes(NamedTuple):
    """Rows to publish, as arrays (products, bars) over the grid that was compared.

    Attributes:
        cells: rows that are new, changed, or published by an earlier run.
        known: rows that an earlier run published just as they are.
        revision: number of each row's newest revision.
    """

    cells: NDArray[np.bool_]
    known: NDArray[np.bool_]
    revision: NDArray[np.int32]


class PublishedGrid:
    """The newest published revision of each row that may still change.

    Examples:
        >>> from cryptovol_dagster.core.features.compute import compute_own_features
        >>> from cryptovol_dagster.core.samples import SPEC, bars
        >>> grid = compute_own_features(bars(), SPEC, from_ns=bars().end_ns - 2 * SPEC.bar_ns)
        >>> published = PublishedGrid(len(grid.names), SPEC.bar_ns)
        >>> published.begin(grid.start_ns)
        >>> wanted = np.ones(grid.valid.shape, bool)
        >>> published.update(grid, wanted).cells
        array([[ True,  True],
               [ True,  True]])
        >>> published.update(grid, wanted).cells.any()
        np.False_
    """

    def __init__(self, n_features: int, bar_ns: int, earlier: Iterable[PublishedRow] = ()) -> None:
        """Begin with no rows of this run.

        Args:
            n_features: number of own features.
            bar_ns: length of a bar in nanoseconds.
            earlier: rows that an earlier run published.
        """
        self._n_features, self._bar_ns = n_features, bar_ns
        self._earlier = {(row.product_id, row.bar_end_ns): row for row in earlier}
        self._first_revision = self._newest_revision = 0
        self.begin(0)

    def begin(self, start_ns: int) -> None:
        """Hold no rows; the first bar to come starts at `start_ns`."""
        self._start_ns = start_ns
        self._values = np.empty((self._n_features, 0, 0))
        self._valid = np.empty((0, 0), dtype=np.bool_)
        self._reason = np.empty((0, 0), dtype=np.int8)
        #: −1: not published.
        self._revision = np.empty((0, 0), dtype=np.int32)

    def restart(self) -> None:
        """Forget the rows of a recording that ended; revisions go on counting.

        A row that is published again under the same key must not look older than the one before it.
        """
        self._first_revision = self._newest_revision + 1
        self.begin(0)

    def update(self, grid: FeatureGrid, wanted: NDArray[np.bool_]) -> Changes:
        """Compare `grid` with the published rows, and take over the rows that differ.

        Args:
            grid: newly computed features.
            wanted: the rows of `grid` that may be published (products, bars).
        """
        self._grow(len(grid.products), grid.start_ns + grid.n_bars * grid.bar_ns)
        values, valid, reason, revision = self._since(grid.start_ns)
        earlier = self._recall(grid, wanted & (revision < 0)) if self._earlier else np.zeros_like(wanted)
        published = revision >= 0
        differs = (valid != grid.valid) | (reason != grid.reason) | _differ(values, grid.values)
        cells = wanted & (~published | differs | earlier)
        revision[cells & ~published] = self._first_revision
        revision[cells & published & differs] += 1
        news = cells & (~published | differs)
        values[:, news], valid[news], reason[news] = grid.values[:, news], grid.valid[news], grid.reason[news]
        self._newest_revision = max(self._newest_revision, int(revision[cells].max(initial=0)))
        return Changes(cells, cells & ~news, revision)

    def forget_before(self, start_ns: int) -> None:
        """Drop the rows of bars before `start_ns`: they are final."""
        views = self._since(start_ns)
        self._values, self._valid, self._reason, self._revision = (view.copy() for view in views)
        self._start_ns = start_ns

    def _grow(self, n_products: int, end_ns: int) -> None:
        shape = n_products, (end_ns - self._start_ns) // self._bar_ns
        if shape == self._revision.shape:
            return
        self._values = _grown(self._values, shape, np.nan)
        self._valid = _grown(self._valid, shape, False)
        self._reason = _grown(self._reason, shape, 0)
        self._revision = _grown(self._revision, shape, -1)

    def _since(self, start_ns: int) -> tuple[NDArray[Any], ...]:
        """Return views of values, valid, reason and revision from a bar on."""
        first = (start_ns - self._start_ns) // self._bar_ns
        return (
            self._values[:, :, first:],
            self._valid[:, first:],
            self._reason[:, first:],
            self._revision[:, first:],
        )

    def _recall(self, grid: FeatureGrid, cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Take over the rows of `cells` that an earlier run published; return which those are."""
        values, valid, reason, revision = self._since(grid.start_ns)
        found = np.zeros_like(cells)
        for product, bar in np.argwhere(cells).tolist():
            end_ns = grid.start_ns + (bar + 1) * grid.bar_ns
            row = self._earlier.pop((grid.products[product], end_ns), None)
            if row is not None:
                values[:, product, bar], valid[product, bar] = row.values, row.valid
                reason[product, bar], revision[product, bar] = row.reason, row.revision
                found[product, bar] = True
        return found


def _grown(cells: NDArray[Any], shape: tuple[int, int], fill: float) -> NDArray[Any]:
    """Return cells (…, products, bars) in a greater rectangle; unlike `np.pad`, in two copies."""
    grown = np.full((*cells.shape[:-2], *shape), fill, dtype=cells.dtype)
    grown[..., : cells.shape[-2], : cells.shape[-1]] = cells
    return grown


def _differ(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where (features, products, bars) differ in any feature by more than rounding."""
    with np.errstate(invalid="ignore"):
        close = np.abs(before - after) <= TOLERANCE * np.abs(after)
    equal = close | (np.isnan(before) & np.isnan(after))
    return np.logical_not(equal.all(axis=0))
