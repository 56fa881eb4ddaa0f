"""Minute candles: imported ones (external), and the table that joins them with the feed's own trades."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import json
from collections.abc import Sequence

import dagster as dg
import pyarrow as pa

from cryptovol_dagster.core.market.candle_rollup import CANDLES, ROLLUP_VERSION
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.defs.assets.declare import chain_asset
from cryptovol_dagster.defs.assets.ingestion import TAGS
from cryptovol_dagster.defs.metadata import OWNERS, group_name, schema_metadata, shown
from cryptovol_dagster.defs.partitions import look_back
from cryptovol_dagster.defs.pools import MARKET
from cryptovol_dagster.defs.retries import retried
from cryptovol_dagster.history.days import read_candles
from cryptovol_dagster.history.store import ASSET, History, day_version
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.market import TICKS
from ingestor.settings import Settings

HISTORY = dg.AssetKey.from_user_string(ASSET)
CANDLES_KEY = dg.AssetKey(["minutes", "candles"])
_DATA_VERSION = "dagster/data_version"
COLUMN_DESCRIPTIONS = {
    "bar_start": "start of the minute, UTC; it covers [start, start + 60 s)",
    "volume": "traded, in base currency",
    "n_trades": "trades of the minute; null where only the exchange's candle is known",
    "signed_volume": "bought minus sold by takers, in base currency; null like n_trades",
    "source": "history: the exchange's own candle; feed: computed from the feed's trades",
}


def candle_assets(
    settings: Settings, grid: TimescaleSpec, days: dg.TimeWindowPartitionsDefinition
) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """Build the external asset `minutes/history` and the asset `minutes/candles`.

    Args:
        settings: the configuration.
        grid: a chain of the minutes.
        days: the partitions.
    """
    products = settings.coinbase.products
    imported = dg.AssetSpec(
        HISTORY,
        description="Imported 1-minute candles of the exchange, by product and month. Written by "
        "`cryptovol up` and `cryptovol import-bars`, which show here the days that they changed.",
        group_name=group_name(grid, "market"),
        owners=OWNERS,
        kinds={"parquet"},
        tags=TAGS,
        partitions_def=days,
        metadata=shown(links={"folder": settings.storage.history_dir}),
    )

    @chain_asset(
        grid,
        "candles",
        deps=[HISTORY, look_back(TICKS, 1)],
        partitions=days,
        part="market",
        pool=MARKET,
        kinds={"python", "parquet"},
        version=str(ROLLUP_VERSION),
        metadata=schema_metadata(CANDLES, COLUMN_DESCRIPTIONS),
    )
    @retried
    def candles(
        context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake], history: dg.ResourceParam[History]
    ) -> dg.MaterializeResult:
        """1-minute candles of a day: the exchange's own where imported, else computed from the feed's trades.

        A minute without a trade has no row, nor has one of which trades are missing (their ids jump). Where
        both sources know a minute the exchange's candle stands, with the feed's number and signed volume of
        trades beside it.
        """
        for key in context.partition_keys:
            context.add_asset_metadata(_write_day(lake, history, products, days, key), partition_key=key)
        return dg.MaterializeResult()

    return [imported, candles]


def imported_day(history: History, products: Sequence[str], day: str) -> dg.AssetMaterialization:
    """Describe a day of imported candles, as a materialization of `minutes/history`.

    Args:
        history: what is stored.
        products: whose candles.
        day: the day (``2024-01-31``).
    """
    candles = history.read_products(products, *partition_window(day))
    return dg.AssetMaterialization(
        asset_key=HISTORY,
        partition=day,
        metadata={
            "dagster/partition_row_count": len(candles),
            **{f"candles {product}": int((candles["product"] == product).sum()) for product in products},
        },
        tags={_DATA_VERSION: day_version(candles)},
    )


def _write_day(
    lake: Lake, history: History, products: Sequence[str], days: dg.TimeWindowPartitionsDefinition, key: str
) -> dict[str, object]:
    window = days.time_window_for_partition_key(key)
    start_ns, end_ns = (int(moment.timestamp()) * NS for moment in (window.start, window.end))
    found = read_candles(lake, history, products, start_ns, end_ns)
    name, summary = CANDLES_KEY.to_user_string(), found.summary()
    # The numbers first: a table without them would be one whose overlap was never compared.
    lake.write_bytes(name, key, json.dumps(summary).encode(), "json")
    path = lake.write_table(name, key, pa.Table.from_pandas(found.candles, CANDLES, preserve_index=False))
    overlap = summary["overlap"]
    return shown(
        rows=len(found.candles),
        numbers={
            **{
                f"{source}_{product}": rows
                for product, sources in summary["products"].items()
                for source, rows in sources.items()
            },
            "incomplete_minutes": found.incomplete,
            "overlap_compared": overlap["compared"],
            "overlap_agreeing": overlap["agreeing"],
            "overlap_worst": overlap["worst"],
        },
        links={"path": path},
    )
