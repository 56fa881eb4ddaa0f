"""Bars, features and labels: one asset each; bars and features once a grid, labels once a chain."""

# No `from __future__ import annotations` here: Dagster reads annotations.

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import dagster as dg

from cryptovol_dagster.core.features.catalogue import features_version
from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.learning.labels import REASONS, forward_volatility, label_hash, rows_labelled_by
from cryptovol_dagster.core.market.bars import bars_hash, build_bars
from cryptovol_dagster.core.market.candle_bars import candle_bars
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import hour_window, partition_window
from cryptovol_dagster.defs import schemas
from cryptovol_dagster.defs.assets.declare import Body, chain_asset
from cryptovol_dagster.defs.metadata import asset_key, lineage_metadata, schema_metadata, shown
from cryptovol_dagster.defs.partitions import look_back
from cryptovol_dagster.defs.pools import MARKET
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.look_back import feature_look_back, label_look_back
from cryptovol_dagster.lake.market import (
    TICKS,
    read_bars,
    read_candles,
    read_ticks,
    read_trades,
    to_table,
    write_features,
)

if TYPE_CHECKING:
    from cryptovol_dagster.core.market.bars import BarGrid


def tick_bars_asset(
    spec: TimescaleSpec, products: tuple[str, ...], hours: dg.PartitionsDefinition
) -> dg.AssetsDefinition:
    """Build the asset `bars` of a grid whose bars are computed from ticks."""

    @_bars_asset(spec, hours, dg.AssetKey(TICKS), schemas.BAR_SOURCES)
    def bars(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> dg.MaterializeResult:
        """Regular grid of as-of quotes, returns and trades; every product has every bar of the hour.

        A bar covers `[start, start + interval)`. An empty one carries the last quote with its age; after a
        gap the quote ends and the next one opens a new segment, which no return crosses.
        """
        for key in context.partition_keys:
            start_ns, end_ns = hour_window(key)
            grid = build_bars(
                read_ticks(lake, key, products),
                start_ns=start_ns,
                end_ns=end_ns,
                spec=spec,
                trades=read_trades(lake, key, products),
            )
            _write_bars(context, lake, spec, key, grid)
        return dg.MaterializeResult()

    return bars


def candle_bars_asset(
    spec: TimescaleSpec, products: tuple[str, ...], days: dg.PartitionsDefinition
) -> dg.AssetsDefinition:
    """Build the asset `bars` of a grid whose bars are computed from candles."""

    @_bars_asset(spec, days, asset_key(spec, "candles"), schemas.CANDLE_BAR_SOURCES)
    def bars(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> dg.MaterializeResult:
        """Regular grid of 1-minute bars from candles; every product has every minute of the day.

        A minute without a candle carries the last close with its age; after a hole longer than
        the gap limit a new segment begins, which no return crosses. Columns that candles lack (spread,
        imbalance, and the trades one by one where only the exchange's candle is known) is null.
        """
        for key in context.partition_keys:
            start_ns, end_ns = partition_window(key)
            candles = read_candles(lake, spec, key)
            grid = candle_bars(candles, products, start_ns=start_ns, end_ns=end_ns, spec=spec)
            _write_bars(context, lake, spec, key, grid)
        return dg.MaterializeResult()

    return bars


def _bars_asset(
    spec: TimescaleSpec,
    partitions: dg.PartitionsDefinition,
    source: dg.AssetKey,
    columns: Mapping[str, tuple[str, ...]],
) -> Callable[[Body], dg.AssetsDefinition]:
    """Declare the asset `bars` of a grid.

    Args:
        spec: a chain on the grid.
        partitions: hours or days.
        source: the asset that bars are computed from.
        columns: the columns of `source` that each column of the bars is computed from.
    """
    return chain_asset(
        spec,
        "bars",
        deps=[look_back(source, 1)],
        partitions=partitions,
        part="market",
        pool=MARKET,
        kinds={"python", "parquet"},
        version=bars_hash(spec),
        metadata={
            **schema_metadata(schemas.bars(spec), schemas.BAR_DESCRIPTIONS),
            **_lineage(source, columns),
        },
    )


def _write_bars(
    context: dg.AssetExecutionContext, lake: Lake, spec: TimescaleSpec, key: str, grid: "BarGrid"
) -> None:
    frame = grid.to_frame()
    path = lake.write_table(spec.asset("bars"), key, to_table(frame))
    metadata = shown(rows=len(frame), numbers=_quality(grid), links={"path": path})
    context.add_asset_metadata(metadata, partition_key=key)


def features_asset(spec: TimescaleSpec, partitions: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """Build the asset `features` of a grid."""
    bars = asset_key(spec, "bars")

    @chain_asset(
        spec,
        "features",
        deps=[look_back(bars, feature_look_back(spec))],
        partitions=partitions,
        part="market",
        pool=MARKET,
        kinds={"python", "parquet"},
        version=features_version(spec),
        metadata={
            **schema_metadata(schemas.features(spec), schemas.feature_descriptions(spec)),
            **_lineage(bars, schemas.feature_sources(spec)),
            "feature_hash": features_version(spec),
        },
    )
    def features(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> dg.MaterializeResult:
        """Features at the end of each bar: volatility over several windows, ranges, spread, flow.

        Nothing after the bar's end enters a row. `valid` is False, with a `reason`, where a window is not
        warm; such rows are never filled in and never scored.
        """
        for key in context.partition_keys:
            start_ns, _ = partition_window(key)
            grid = read_bars(lake, spec, key, feature_look_back(spec))
            frame = compute_features(grid, spec, from_ns=start_ns).to_frame()
            path = write_features(lake, spec, key, to_table(frame))
            numbers = {"valid_share": float(frame["valid"].mean())}
            metadata = shown(rows=len(frame), numbers=numbers, links={"path": path})
            context.add_asset_metadata(metadata, partition_key=key)
        return dg.MaterializeResult()

    return features


def labels_asset(spec: TimescaleSpec, partitions: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """Build the asset `labels` of a chain."""
    bars = asset_key(spec, "bars")

    @chain_asset(
        spec,
        "labels",
        deps=[look_back(bars, label_look_back(spec))],
        partitions=partitions,
        part="market",
        pool=MARKET,
        kinds={"python", "parquet"},
        version=label_hash(spec),
        metadata={
            **schema_metadata(schemas.labels(spec), schemas.LABEL_DESCRIPTIONS),
            **_lineage(bars, schemas.label_sources(spec)),
            "horizon_s": spec.horizon_s,
        },
    )
    def labels(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> dg.MaterializeResult:
        """Volatility of the bars that follow each bar, σ over (t, t + H].

        A partition contains the rows whose last labelled bar is in it, so no row waits for the next hour.
        Whether σ is a spike depends on the threshold of a training span, so that is decided in `splits`,
        not here.
        """
        for key in context.partition_keys:
            grid = read_bars(lake, spec, key, label_look_back(spec))
            from_ns, to_ns = rows_labelled_by(*partition_window(key), spec)
            labelled = forward_volatility(grid, spec, from_ns=max(from_ns, grid.start_ns), to_ns=to_ns)
            frame = labelled.to_frame()
            path = lake.write_table(spec.asset("labels"), key, to_table(frame), version=label_hash(spec))
            numbers = {
                "labelled_share": float((frame["reason"] == 0).mean()),
                **{f"rows_{name}": int((frame["reason"] == code).sum()) for code, name in REASONS.items()},
            }
            metadata = shown(rows=len(frame), numbers=numbers, links={"path": path})
            context.add_asset_metadata(metadata, partition_key=key)
        return dg.MaterializeResult()

    return labels


def _lineage(key: dg.AssetKey, sources: Mapping[str, tuple[str, ...]]) -> dict[str, dg.TableColumnLineage]:
    """Return the column lineage: from which columns of the asset `key` each column is computed."""
    return lineage_metadata({name: [(key, column) for column in of] for name, of in sources.items()})


def _quality(grid: "BarGrid") -> dict[str, float]:
    return {
        "gap_share": float(grid.in_gap.mean()),
        "stale_share": float(grid.stale.mean()),
        "empty_share": float((grid.n_updates == 0).mean()),
        "new_segments": int(grid.new_segment.sum()),
        "out_of_bounds": grid.n_out_of_bounds,
    }
