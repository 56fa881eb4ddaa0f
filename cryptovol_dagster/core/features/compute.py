"""Computation of the features of a grid of bars."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cryptovol_dagster.core.features import formulas
from cryptovol_dagster.core.features.block import Block
from cryptovol_dagster.core.features.catalogue import Feature, feature_list, own_features
from cryptovol_dagster.core.features.grid import FeatureError, FeatureGrid, Reason
from cryptovol_dagster.core.features.windows import ewma_length
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.specs import TimescaleSpec

#: Bars computed at a time: few enough for the processor's cache and for the allocator to reuse memory.
_BLOCK_BARS, _CROSS_BLOCK_BARS = 16_384, 4_096
#: Bars of all products of a block, look-back included.
_BLOCK_CELLS = 65_536


def compute_features(bars: BarGrid, spec: TimescaleSpec, *, from_ns: int | None = None) -> FeatureGrid:
    """Compute own and cross features of every bar from `from_ns` on; as `compute_own_features` otherwise.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC, bars
        >>> grid = compute_features(bars(), SPEC)
        >>> grid.values.shape
        (55, 2, 3600)
        >>> grid["ln_rv_15"][0, -3:].round(2)
        array([-9.24, -9.16, -9.13])
    """
    grid = _empty_grid(bars, spec, from_ns, feature_list(spec))
    _fill_own(bars, spec, grid)
    _fill_cross(spec, grid)
    return grid


def compute_own_features(bars: BarGrid, spec: TimescaleSpec, *, from_ns: int | None = None) -> FeatureGrid:
    """Compute own features of every bar from `from_ns` on.

    A row uses `lookback_bars`, its own included; bars before the first one count as not valid. So rows
    with a full look-back do not depend on the span they are computed in.

    Args:
        bars: the look-back, then the bars of the rows.
        spec: windows and half-lives; `bars` must have its bar length.
        from_ns: start of the first row's bar; by default the first of `bars`.

    Raises:
        FeatureError: another bar length, or `from_ns` off the grid or outside it.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC, bars
        >>> len(compute_own_features(bars(), SPEC).names)
        51
    """
    grid = _empty_grid(bars, spec, from_ns, own_features(spec))
    _fill_own(bars, spec, grid)
    return grid


def with_cross_features(own: FeatureGrid, spec: TimescaleSpec) -> FeatureGrid:
    """Add cross features to a grid of own features, for products whose grids were computed apart.

    They are means over the products of `spec.reference_set` that are in the grid, the row's own left out.
    They are NaN where no other product of the set is there. So neither products outside the set nor the
    order of the grid's products change a bit of them.

    Examples:
        >>> from dataclasses import replace
        >>> from cryptovol_dagster.core.samples import SPEC, bars
        >>> own = compute_own_features(bars(), SPEC)
        >>> own.products
        ('BTC-USD', 'ETH-USD')
        >>> alone = with_cross_features(own, replace(SPEC, reference_set=("BTC-USD",)))
        >>> alone["cross_ln_gk_15"][:, -1].round(2)
        array([ nan, -10.])
    """
    table = feature_list(spec)
    values = np.empty((len(table), *own.valid.shape))
    values[: len(own.names)] = own.values
    grid = replace(own, names=tuple(feature.name for feature in table), values=values)
    _fill_cross(spec, grid)
    return grid


def _empty_grid(
    bars: BarGrid, spec: TimescaleSpec, from_ns: int | None, table: tuple[Feature, ...]
) -> FeatureGrid:
    if bars.bar_ns != spec.bar_ns:
        raise FeatureError(f"bars of {bars.bar_ns} ns do not fit timescale {spec.name} ({spec.bar_ns} ns)")
    skip, rest = divmod((bars.start_ns if from_ns is None else from_ns) - bars.start_ns, bars.bar_ns)
    if rest or not 0 <= skip <= bars.n_bars:
        raise FeatureError(f"from_ns {from_ns} is not a bar of [{bars.start_ns}, {bars.end_ns})")
    n_products, n_rows = len(bars.products), bars.n_bars - skip
    return FeatureGrid(
        products=bars.products,
        start_ns=bars.start_ns + skip * bars.bar_ns,
        bar_ns=bars.bar_ns,
        names=tuple(feature.name for feature in table),
        values=np.empty((len(table), n_products, n_rows)),
        valid=np.zeros((n_products, n_rows), dtype=np.bool_),
        reason=np.zeros((n_products, n_rows), dtype=np.int8),
    )


def _fill_own(bars: BarGrid, spec: TimescaleSpec, grid: FeatureGrid) -> None:
    """Fill the own features of the grid, and whether each row may be scored."""
    table, skip = own_features(spec), (grid.start_ns - bars.start_ns) // bars.bar_ns
    kernel_bars = max((ewma_length(half_life) for half_life in spec.ewma_half_lives_bars), default=0)
    window_bars = max(feature.window_bars for feature in table if feature.family != "EWMA")
    for left in range(0, grid.n_bars, _BLOCK_BARS):
        right = min(left + _BLOCK_BARS, grid.n_bars)
        shared: dict[Any, Any] = {}
        # Of few bars, many products make one block, since a numpy call on few numbers is all overhead.
        n_rows = max(_BLOCK_CELLS // (right - left + max(window_bars, kernel_bars)), 1)
        for row in range(0, len(grid.products), n_rows):
            rows = slice(row, min(row + n_rows, len(grid.products)))
            block = Block(
                bars,
                rows,
                skip + left,
                skip + right,
                window_bars=window_bars,
                kernel_bars=kernel_bars,
                shared=shared,
            )
            _fill_block(block, table, grid, rows, slice(left, right))


def _fill_cross(spec: TimescaleSpec, grid: FeatureGrid) -> None:
    """Fill the cross features from the own ones of the reference set."""
    place = {product: row for row, product in enumerate(grid.products)}
    members = [product for product in spec.reference_set if product in place]
    rows = [place[product] for product in members]
    # A product outside the set has the row after the members, which adds nothing to the others' means.
    row_of = [members.index(p) if p in members else len(members) for p in grid.products]
    for left in range(0, grid.n_bars, _CROSS_BLOCK_BARS):
        columns = slice(left, left + _CROSS_BLOCK_BARS)
        has_none = np.isnan(grid["age_s"][:, columns])
        for out, feature in zip(grid.values, feature_list(spec), strict=True):
            if feature.mean_of is not None:
                known = grid[feature.mean_of][rows, columns]
                outside = np.full((1, known.shape[1]), np.nan)
                means = formulas.mean_of_others(np.concatenate([known, outside]))[row_of]
                # A product without a fresh quote has no features, not even of the other products.
                means[has_none] = np.nan
                out[:, columns] = means


def _fill_block(
    block: Block, table: tuple[Feature, ...], grid: FeatureGrid, rows: slice, columns: slice
) -> None:
    cold = np.zeros(block.fresh.shape, dtype=np.bool_)
    if block.fresh.any():
        for values, feature in zip(grid.values, table, strict=False):  # the cross features come after them
            out = values[rows, columns]
            assert feature.compute is not None
            warm = feature.compute(block, out)
            if warm is not None:
                np.copyto(out, np.nan, where=~warm)
                if not feature.optional:
                    cold |= ~warm
            block.results[feature.name] = out, warm
    # Rows without a fresh quote were computed from carried or unknown values; they must be NaN.
    if not block.fresh.all():
        np.copyto(grid.values[: len(table), rows, columns], np.nan, where=~block.fresh)
    reason = grid.reason[rows, columns]
    for code, applies in (
        (Reason.WARMING_UP, cold),
        (Reason.BREAK, ~block.now("ret_ok")),
        (Reason.STALE, block.now("stale")),
        (Reason.NO_QUOTE, ~block.now("has_quote")),
        (Reason.IN_GAP, block.now("in_gap")),
    ):
        reason[applies] = code
    grid.valid[rows, columns] = reason == Reason.OK
