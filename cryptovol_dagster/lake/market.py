"""Typed reads of the chain's partitions: lake tables in, the core's values out.

Belongs here: joining partitions to the input of a core function. Does not belong here: computation, and
anything that depends on Dagster.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cryptovol_dagster.core.features.catalogue import features_version
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.market.ticks import TickColumns, TradeColumns
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import hour_window, partition_at, partition_window
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.look_back import window_back

LEDGER = "gap_ledger"
#: Files beside the ticks of an hour: its trades, and each product's first tick after it.
TICKS, TRADES, NEXT_TICKS = "ticks", "trades", "next_ticks"


def read_ticks(lake: Lake, partition_key: str, products: tuple[str, ...]) -> TickColumns:
    """Read the clean ticks of an hour, of the one before it and each product's first after it.

    Quotes carry over the hour's edge, and so do losses: the next tick shows whether there was one.
    """
    for asset in (TICKS, NEXT_TICKS):
        lake.require(asset, [partition_key])
    tables = [
        _of_products(lake, TICKS, partition_key, products, 1),
        _of_products(lake, NEXT_TICKS, partition_key, products, 0),
    ]
    ticks = TickColumns.concat([TickColumns.from_table(table, products=products) for table in tables])
    # Each hour is ordered by product, then time; two hours in a row are not.
    return ticks.take(np.lexsort((ticks.event_time_ns, ticks.product)))


def read_sequence_gaps(lake: Lake, partition_key: str) -> pa.Table:
    """Read the ledgered gaps of a connection's numbers, in and around an hour.

    Raises:
        LakeError: the hour's ledger was never written.
    """
    ledger = lake.read_table(LEDGER, *hour_window(partition_key))
    return ledger.filter(pc.call_function("equal", [ledger["kind"], pa.scalar("sequence")]))


def read_trades(lake: Lake, partition_key: str, products: tuple[str, ...]) -> TradeColumns | None:
    """Read the trades of an hour and of the one before it; None where the feed had none."""
    lake.require(TRADES, [partition_key])
    table = _of_products(lake, TRADES, partition_key, products, 1)
    if not table.num_rows:
        return None
    trades = TradeColumns.from_table(table, products=products)
    return trades.take(np.lexsort((trades.trade_id, trades.trade_time_ns, trades.product)))


def _of_products(
    lake: Lake, asset: str, partition_key: str, products: tuple[str, ...], hours_back: int
) -> pa.Table:
    table = lake.read_table(asset, *window_back(partition_key, hours_back)).unify_dictionaries()
    wanted = pc.SetLookupOptions(pa.array(products, pa.string()))
    return table.filter(pc.call_function("is_in", [table["product_id"].cast(pa.string())], wanted))


def read_candles(lake: Lake, spec: TimescaleSpec, partition_key: str) -> pd.DataFrame:
    """Read the candles of a day and of the one before it, whose last close carries over midnight.

    Raises:
        LakeError: the day's candles were never written.
    """
    asset = spec.asset("candles")
    lake.require(asset, [partition_key])
    return lake.read_table(asset, *window_back(partition_key, 1)).unify_dictionaries().to_pandas()


def read_bars(lake: Lake, spec: TimescaleSpec, partition_key: str, look_back: int) -> BarGrid:
    """Read the bars of a partition and of the unbroken run of at most `look_back` partitions before it.

    Raises:
        LakeError: the partition itself was never written.
    """
    asset, length_ns = spec.asset("bars"), spec.partition_ns
    lake.require(asset, [partition_key])
    start_ns, end_ns = partition_window(partition_key)
    while look_back and lake.exists(asset, partition_at(start_ns - length_ns, length_ns)):
        start_ns, look_back = start_ns - length_ns, look_back - 1
    return BarGrid.from_frame(lake.read_table(asset, start_ns, end_ns).to_pandas(), bar_ns=spec.bar_ns)


def read_mids(lake: Lake, spec: TimescaleSpec, start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame | None:
    """Read start, product and mid of the bars of a stretch, for a picture; None where none were written."""
    asset, window = spec.asset("bars"), (start.value, end.value + 1)
    if not lake.fingerprint(asset, *window):
        return None
    return lake.read_table(asset, *window, columns=["bar_start", "product", "close"]).to_pandas()


def write_features(lake: Lake, spec: TimescaleSpec, partition_key: str, table: pa.Table) -> Path:
    """Replace a partition's features, own and cross, and say in the file what they mean.

    Raises:
        LakeError: the folder cannot be written.
    """
    version, asset = features_version(spec), spec.asset("features")
    return lake.write_table(asset, partition_key, table, version=version, reference_set=spec.reference_set)


def to_table(frame: pd.DataFrame) -> pa.Table:
    """Convert a core frame to a lake table; pandas' own types (nullable integers) survive the round trip."""
    return pa.Table.from_pandas(frame, preserve_index=False)


def hash_bytes(content: bytes) -> str:
    """Return a digest of stored bytes, for names of versions."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()
