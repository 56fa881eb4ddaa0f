"""Minute candles: what was imported (external), and the table that joins it with the feed's own trades."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import json
from collections.abc import Sequence

import dagster as dg
import numpy as np
import pyarrow as pa

from cryptovol_dagster.core.market.candle_checks import NUMBERS
from cryptovol_dagster.core.market.candle_rollup import CANDLES, ROLLUP_VERSION
from cryptovol_dagster.defs.assets.ingestion import GROUP, TAGS
from cryptovol_dagster.defs.assets.market import lake_name
from cryptovol_dagster.defs.checks.framework import Check, Stored, schema_check
from cryptovol_dagster.defs.metadata import OWNERS, rows_and_path, schema_metadata, timescale_tags
from cryptovol_dagster.defs.partitions import look_back
from cryptovol_dagster.defs.pools import MARKET
from cryptovol_dagster.defs.retries import retried
from cryptovol_dagster.history.days import read_candles
from cryptovol_dagster.history.store import ASSET, History
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.market import TICKS
from ingestor.settings import Settings

HISTORY = dg.AssetKey.from_user_string(ASSET)
CANDLES_KEY = dg.AssetKey(["minutes", "candles"])
#: A share of a day's minutes without a candle at which people should look.
MAX_HOLE_SHARE = 0.05
COLUMN_DESCRIPTIONS = {
    "bar_start": "start of the minute, UTC; it covers [start, start + 60 s)",
    "volume": "traded, in base currency",
    "n_trades": "trades of the minute; null where only the exchange's candle is known",
    "signed_volume": "bought minus sold by whoever took, in base currency; null like n_trades",
    "source": "history: the exchange's own candle; feed: made of the feed's trades",
}


def candle_assets(
    settings: Settings, days: dg.TimeWindowPartitionsDefinition
) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """Build the external asset `minutes/history` and the asset `minutes/candles`, days as partitions."""
    products = settings.coinbase.products
    imported = dg.AssetSpec(
        HISTORY,
        description="Imported 1-minute candles of the exchange, by product and month. Written by "
        "`cryptovol import-bars`, which shows here the days that it changed.",
        group_name=GROUP,
        owners=OWNERS,
        kinds={"parquet"},
        tags=TAGS,
        partitions_def=days,
        metadata={"folder": dg.MetadataValue.path(settings.storage.history_dir)},
    )

    @dg.asset(
        key=CANDLES_KEY,
        deps=[HISTORY, look_back(TICKS, 1)],
        partitions_def=days,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name="market",
        owners=OWNERS,
        pool=MARKET,
        kinds={"python", "parquet"},
        tags=timescale_tags("minutes"),
        code_version=str(ROLLUP_VERSION),
        metadata=schema_metadata(CANDLES, COLUMN_DESCRIPTIONS),
    )
    @retried
    def candles(
        context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake], history: dg.ResourceParam[History]
    ) -> dg.MaterializeResult:
        """1-minute candles of a day: the exchange's own where imported, else made of the feed's trades.

        A minute without a trade has no row, nor has one of which trades are missing (their ids jump). Where
        both sources know a minute the exchange's candle stands, with the feed's number and signed volume of
        trades beside it.
        """
        for key in context.partition_keys:
            context.add_asset_metadata(_write_day(lake, history, products, days, key), partition_key=key)
        return dg.MaterializeResult()

    return [imported, candles]


def _write_day(
    lake: Lake, history: History, products: Sequence[str], days: dg.TimeWindowPartitionsDefinition, key: str
) -> dict[str, object]:
    window = days.time_window_for_partition_key(key)
    start_ns, end_ns = (int(moment.timestamp()) * 1_000_000_000 for moment in (window.start, window.end))
    found = read_candles(lake, history, products, start_ns, end_ns)
    name, summary = lake_name(CANDLES_KEY), found.summary()
    # The numbers first: a table without them would be one whose overlap nobody has looked at.
    lake.write_bytes(name, key, json.dumps(summary).encode(), "json")
    path = lake.write_table(name, key, pa.Table.from_pandas(found.candles, CANDLES, preserve_index=False))
    overlap = summary["overlap"]
    return {
        **rows_and_path(len(found.candles), path),
        **{
            f"{source}_{product}": rows
            for product, sources in summary["products"].items()
            for source, rows in sources.items()
        },
        "incomplete_minutes": found.incomplete,
        "overlap_compared": overlap["compared"],
        "overlap_agreeing": overlap["agreeing"],
        "overlap_worst": dg.MetadataValue.json(overlap["worst"]),
    }


def candle_checks() -> list[Check]:
    """Declare the checks of `minutes/candles`."""
    return [
        schema_check(CANDLES_KEY, CANDLES),
        Check(
            CANDLES_KEY,
            "no_impossible_ohlc",
            _possible,
            description="Every candle has positive prices, low ≤ open, close ≤ high, and no negative volume; "
            "each minute of a product stands once.",
            blocking=True,
        ),
        Check(
            CANDLES_KEY,
            "overlap_agrees",
            _overlap_agrees,
            description="Where the exchange's candle and the feed's trades are both known they say the same.",
        ),
        Check(
            CANDLES_KEY,
            "holes",
            _few_holes,
            description=f"At most {MAX_HOLE_SHARE:.0%} of a product's minutes are without a candle.",
        ),
    ]


def _possible(stored: Stored) -> list[str]:
    frame = stored.frame()
    opened, high, low, close, volume = (frame[name].to_numpy(np.float64) for name in NUMBERS)
    possible = (low > 0) & (low <= np.minimum(opened, close)) & (high >= np.maximum(opened, close))
    wrong = frame.loc[~(possible & np.isfinite(high) & (volume >= 0))]
    sentences = []
    if len(wrong):
        first = wrong.iloc[0]
        numbers = ", ".join(f"{name} {first[name]:g}" for name in NUMBERS)
        sentences.append(
            f"expected 0 < low <= open, close <= high and volume >= 0, found {len(wrong)} of {len(frame)} "
            f"candles without, the first {first['product']} {first['bar_start']}: {numbers}"
        )
    twice = frame.loc[frame.duplicated(["product", "bar_start"])]
    if len(twice):
        first = twice.iloc[0]
        sentences.append(
            f"expected a minute once, found {len(twice)} again, the first {first['product']} "
            f"{first['bar_start']}"
        )
    return sentences


def _overlap_agrees(stored: Stored) -> list[str]:
    overlap = stored.json()["overlap"]
    differing = overlap["compared"] - overlap["agreeing"]
    if not differing:
        return []
    return [
        f"expected the {overlap['compared']} minutes that both sources know to agree, found {differing} that "
        f"do not, the worst: {'; '.join(overlap['worst'])}"
    ]


def _few_holes(stored: Stored) -> list[str]:
    summary = stored.json()
    products = stored.frame(["product"])["product"]
    minutes = summary["minutes"]
    sentences = []
    for product in summary["products"]:
        missing = minutes - int((products == product).sum())
        if missing > MAX_HOLE_SHARE * minutes:
            sentences.append(
                f"{product}: expected at most {MAX_HOLE_SHARE:.0%} of the minutes without a candle, found "
                f"{missing / minutes:.1%} ({missing:,} of {minutes:,})"
            )
    return sentences
