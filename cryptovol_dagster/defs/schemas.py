"""Columns of the chain's tables, for catalog and checks: made by the code that writes them, on one bar.

So a schema cannot drift from what is written, and the catalog shows it before anything was materialized.
"""

from __future__ import annotations

from functools import lru_cache

import pandas as pd
import pyarrow as pa

from cryptovol_dagster.core.bars import BarGrid, build_bars
from cryptovol_dagster.core.features import FEATURES, compute_features
from cryptovol_dagster.core.labels import forward_volatility
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.ticks import TickColumns
from cryptovol_dagster.resources.chain import to_table

BAR_DESCRIPTIONS = {
    "open": "mid as of the bar's start",
    "close": "mid as of the bar's end",
    "ret_nano": "log return x 1e9; null where unknown or across a break",
    "gk_atto": "Garman-Klass term x 1e18",
    "spread_nano": "(ask - bid) / mid x 1e9; 1e5 is one basis point",
    "imbalance_nano": "(bid size - ask size) / sum x 1e9",
    "age_s": "age of the quote at the bar's end, seconds",
    "stale": "the quote is too old for a prediction",
    "in_gap": "no message for longer than the gap limit",
    "new_segment": "first bar after a break; no return crosses it",
    "lossy": "messages were lost in it, or around it since the product's last tick; its return is unknown",
}
LABEL_DESCRIPTIONS = {
    "sigma": "root mean square of the next H bars' log returns; null is no label",
    "trailing_sigma": "the same over the H bars up to this one",
    "reason": "0 labelled, 1 break, 2 stale quote, 3 end of data",
}


@lru_cache(maxsize=4)
def _one_bar(spec: TimescaleSpec) -> BarGrid:
    return build_bars(TickColumns.empty(("any",)), start_ns=0, end_ns=spec.bar_ns, spec=spec)


def _schema(frame: pd.DataFrame) -> pa.Schema:
    return to_table(frame).schema.remove_metadata()


@lru_cache(maxsize=4)
def bars(spec: TimescaleSpec) -> pa.Schema:
    """Give the columns of `bars`."""
    return _schema(_one_bar(spec).to_frame())


@lru_cache(maxsize=4)
def features(spec: TimescaleSpec) -> pa.Schema:
    """Give the columns of `features`."""
    return _schema(compute_features(_one_bar(spec), spec).to_frame())


@lru_cache(maxsize=4)
def labels(spec: TimescaleSpec) -> pa.Schema:
    """Give the columns of `labels`."""
    return _schema(forward_volatility(_one_bar(spec), spec).to_frame())


def feature_descriptions(spec: TimescaleSpec) -> dict[str, str]:
    """Give each feature's formula and unit."""
    return {feature.name: f"{feature.formula} [{feature.unit}]" for feature in FEATURES(spec)}
