"""The rows that reports describe, and the columns those rows must have."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from cryptovol_dagster.core.learning.dataset import KEY_COLUMNS
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.lake.datasets import ChainError
from cryptovol_dagster.lake.files import Lake

#: Columns that identify a row of an hour.
ROW_KEY = ("bar_start", "product")
_BAR = "bar_"


def feature_columns(features: pa.Schema) -> pa.Schema:
    """Return the columns of `features` that are features."""
    return pa.schema([field for field in features if field.name not in KEY_COLUMNS])


def with_columns(features: pa.Schema, names: tuple[str, ...]) -> pa.Schema:
    """Return columns together with further numbers."""
    return pa.schema([*features, *(pa.field(name, pa.float64()) for name in names)])


def quality_columns(bars: pa.Schema, features: pa.Schema) -> pa.Schema:
    """Return the columns of `quality_rows`."""
    own = [field.with_name(_BAR + field.name) for field in bars if field.name not in ROW_KEY]
    return pa.schema([*features, *own])


def quality_rows(lake: Lake, spec: TimescaleSpec, key: str) -> pd.DataFrame:
    """Read an hour's features with its bars beside them; those columns begin with ``bar_``.

    Raises:
        LakeError: the hour has no bars or no features.
        ChainError: bars and features do not have the same rows.
    """
    assets = spec.asset("features"), spec.asset("bars")
    for asset in assets:
        lake.require(asset, [key])
    features, bars = (lake.read_table(asset, *partition_window(key)).to_pandas() for asset in assets)
    same = len(features) == len(bars) and all(
        (features[name].astype(str) == bars[name].astype(str)).all() for name in ROW_KEY
    )
    if not same:
        raise ChainError(
            f"{assets[0]} of {key} ({len(features)} rows) was computed from other bars ({len(bars)} rows): "
            "materialize it again"
        )
    return pd.concat([features, bars.drop(columns=list(ROW_KEY)).add_prefix(_BAR)], axis=1)
