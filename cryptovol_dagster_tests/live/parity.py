"""Comparing live rows with `cryptovol replay` of the raw files of the same run."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.core.features.catalogue import own_feature_names
from cryptovol_dagster.core.features.compute import compute_own_features
from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.market.bars import BarGrid, build_bars
from cryptovol_dagster.core.market.cleaning import clean_ticks, clean_trades
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import HOUR_NS
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.replay import replay
from cryptovol_dagster_tests.e2e.recorded import EVER_NS
from ingestor.archive.reader import RawReader
from ingestor.envelope import DECODERS, FEATURES_TOPIC, TICKS, closed_partition
from ingestor.settings import Settings

SPEC = timescale_spec(Settings().timescales.seconds, "seconds")
NAMES = own_feature_names(SPEC)
KEY = ["product", "bar_start"]
#: The longest window, after which every feature may be known.
WARM_BARS = 2_400


def replayed(raw_dir: Path, out: Path) -> pd.DataFrame:
    """Features by `cryptovol replay`, which knows of no trades."""
    files = [file.path for file in RawReader(raw_dir).files(TICKS, 0, EVER_NS)]
    replay(files, spec=SPEC, out=out)
    return pd.read_parquet(out).astype({"product": str}).set_index(KEY).sort_index()


def from_storage(raw_dir: Path) -> pd.DataFrame:
    """Own features of all of raw storage, read at once as the hourly assets read it."""
    rows = compute_own_features(bars_of(raw_dir), SPEC).to_frame().astype({"product": str})
    return rows.set_index(KEY).sort_index()


def bars_of(raw_dir: Path) -> BarGrid:
    """Bars of all of raw storage, in whole hours."""
    store = RawStore(raw_dir)
    products = store.reader.read(TICKS, 0, EVER_NS, ["product_id"])["product_id"].unique().to_pylist()
    recorded = store.ticks(0, EVER_NS, products, store.gaps(0, EVER_NS))
    ticks = clean_ticks(recorded, round(SPEC.late_after_s * NS)).ticks
    trades = clean_trades(store.trades(0, EVER_NS, products))
    start_ns = int(ticks.event_time_ns.min()) // HOUR_NS * HOUR_NS
    end_ns = (int(ticks.event_time_ns.max()) // HOUR_NS + 1) * HOUR_NS
    return build_bars(ticks, start_ns=start_ns, end_ns=end_ns, spec=SPEC, trades=trades)


def written(folder: Path) -> pd.DataFrame:
    rows = pd.read_parquet(folder)
    assert not rows.duplicated(KEY).any()
    return rows.set_index(KEY).sort_index()


def published(values: list[bytes]) -> pd.DataFrame:
    """The last revision of each key of the topic, as whoever reads it would keep."""
    rows = {}
    for value in values:
        message = DECODERS[FEATURES_TOPIC].decode(value)
        if closed_partition(message) is not None:
            continue
        key = message.product_id, message.bar_end_ns
        if key not in rows or rows[key].revision <= message.revision:
            rows[key] = message
    frame = pd.DataFrame(
        {
            "product": row.product_id,
            "bar_start": pd.Timestamp(row.bar_end_ns - SPEC.bar_ns, unit="ns", tz="UTC"),
            **{name: np.nan if row.values[name] is None else row.values[name] for name in NAMES},
            "valid": row.valid,
            "reason": int(Reason[row.reason.upper()]),
        }
        for row in rows.values()
    )
    return frame.set_index(KEY).sort_index()


def closed_by_partition(values: list[bytes], n_partitions: int) -> dict[int, int]:
    """How far each partition said it had closed (ns); no row of a bar closed before may follow.

    Args:
        values: of ticks.features, one partition after another.
        n_partitions: of ticks.raw and of ticks.features.
    """
    closed: dict[int, int] = {}
    for value in values:
        message = DECODERS[FEATURES_TOPIC].decode(value)
        number = closed_partition(message)
        if number is not None:
            closed[number] = max(message.bar_end_ns, closed.get(number, 0))
        elif message.revision == 0:
            number = zlib.crc32(message.product_id.encode()) % n_partitions
            assert message.bar_end_ns > closed.get(number, 0), (message.product_id, message.bar_end_ns)
    return closed


def assert_parity(live: pd.DataFrame, batch: pd.DataFrame) -> int:
    """Every live row equals the batch row, and none is missing from the first tick to the last."""
    for product, rows in batch.groupby(level="product"):
        ticked = rows.index[rows["reason"] != Reason.IN_GAP].get_level_values("bar_start")
        wanted = rows.loc[(slice(None), slice(ticked.min(), ticked.max())), :].index
        missing = wanted.difference(live.index)
        # The quote is carried on after the last tick; how far the live side went on depends on when it ended.
        carried = ticked.max() - pd.Timedelta(seconds=SPEC.gap_after_s + 1)
        late = missing[missing.get_level_values("bar_start") < carried]
        assert late.empty, f"{product}: {len(late)} rows are missing, the first {late[:3].tolist()}"
    common = live.index.intersection(batch.index)
    one, other = live.loc[common], batch.loc[common]
    np.testing.assert_array_equal(one["valid"].to_numpy(), other["valid"].to_numpy())
    np.testing.assert_array_equal(one["reason"].to_numpy(), other["reason"].to_numpy())
    for name in NAMES:
        np.testing.assert_allclose(
            one[name].to_numpy(), other[name].to_numpy(), rtol=1e-12, atol=0, err_msg=name
        )
    return int(one["valid"].sum())


def last_line(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])
