"""Columns of the chain's tables, for catalog and checks: from the code that writes them, on one bar.

So a schema cannot differ from the written files, and the catalog shows it before any materialization.
"""

from __future__ import annotations

from functools import lru_cache

import pandas as pd
import pyarrow as pa

from cryptovol_dagster.core.features.catalogue import feature_list
from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.learning.labels import forward_volatility
from cryptovol_dagster.core.market.bars import BarGrid, build_bars
from cryptovol_dagster.core.market.ticks import TickColumns
from cryptovol_dagster.core.specs import GK, TimescaleSpec
from cryptovol_dagster.lake.market import to_table

BAR_DESCRIPTIONS = {
    "open": "mid as of the bar's start",
    "close": "mid as of the bar's end",
    "ret_nano": "log return x 1e9; null where unknown or across a break",
    "gk_atto": "Garman-Klass term x 1e18",
    "spread_nano": "(ask - bid) / mid x 1e9; 1e5 is one basis point",
    "range_nano": "log of high over low x 1e9",
    "imbalance_nano": "(bid size - ask size) / sum x 1e9",
    "microprice_nano": "(microprice - mid) / mid x 1e9",
    "has_spread": "the quote has bid and ask (candles do not)",
    "has_volume": "the traded size is known (of candles too)",
    "has_trades": "trades are known: a recent one, a quote, and no message lost",
    "age_s": "age of the quote at the bar's end, seconds",
    "stale": "the quote is too old for a prediction",
    "in_gap": "no message for longer than the gap limit",
    "new_segment": "first bar after a break; no return crosses it",
    "lossy": "messages were lost in it, or around it since the product's last tick; its return is unknown",
}
_TIME, _QUOTE, _SIZES = ("event_time_ns",), ("event_time_ns", "bid", "ask"), ("bid_size", "ask_size")
_UNBROKEN = (*_QUOTE, "gap_before")
#: Columns of `ticks` that a column of `bars` is computed from. Trades are stored beside the ticks.
BAR_SOURCES = {
    "product": ("product_id",),
    **dict.fromkeys(("open", "high", "low", "close", "out_of_bounds"), _QUOTE),
    **dict.fromkeys(("ret_nano", "gk_atto", "range_nano", "ret_ok", "n_mid_changes"), _UNBROKEN),
    "spread_nano": _QUOTE,
    **dict.fromkeys(("imbalance_nano", "has_imbalance"), (*_TIME, *_SIZES)),
    "microprice_nano": (*_QUOTE, *_SIZES),
    **dict.fromkeys(("n_updates", "age_s", "has_quote", "has_spread", "stale", "in_gap"), _TIME),
    **dict.fromkeys(("new_segment", "lossy"), (*_TIME, "gap_before")),
}
#: Columns of `candles` that a column of bars is computed from; the others are unknown for such bars.
_PRICES = ("open", "high", "low", "close")
CANDLE_BAR_SOURCES = {
    "bar_start": ("bar_start",),
    "product": ("product",),
    **{name: (name,) for name in _PRICES},
    "ret_nano": ("bar_start", "close"),
    "gk_atto": _PRICES,
    "range_nano": ("high", "low"),
    "volume_e8": ("volume",),
    "n_trades": ("n_trades",),
    "signed_volume_e8": ("signed_volume",),
    "has_trades": ("n_trades", "signed_volume"),
    **dict.fromkeys(
        ("n_updates", "age_s", "has_quote", "has_volume", "stale", "in_gap", "new_segment"), ("bar_start",)
    ),
    **dict.fromkeys(("ret_ok", "out_of_bounds"), ("bar_start", *_PRICES)),
}
#: Columns of `bars` that the key columns of `features` are computed from.
_FEATURE_KEY_SOURCES = {
    "bar_start": ("bar_start",),
    "product": ("product",),
    **dict.fromkeys(("valid", "reason"), ("ret_ok", "stale", "has_quote", "in_gap")),
}
LABEL_DESCRIPTIONS = {
    "sigma": "volatility of the next H bars, per bar; null is no label",
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
    """Return the columns of `bars`."""
    return _schema(_one_bar(spec).to_frame())


@lru_cache(maxsize=4)
def features(spec: TimescaleSpec) -> pa.Schema:
    """Return the columns of `features`."""
    return _schema(compute_features(_one_bar(spec), spec).to_frame())


@lru_cache(maxsize=4)
def labels(spec: TimescaleSpec) -> pa.Schema:
    """Return the columns of `labels`."""
    return _schema(forward_volatility(_one_bar(spec), spec).to_frame())


def label_sources(spec: TimescaleSpec) -> dict[str, tuple[str, ...]]:
    """Return the columns of `bars` that each column of `labels` is computed from."""
    move = "gk_atto" if spec.target == GK else "ret_nano"
    return {
        "bar_start": ("bar_start",),
        "product": ("product",),
        **dict.fromkeys(("sigma", "trailing_sigma", "reason"), (move, "ret_ok", "age_s", "in_gap")),
    }


def feature_sources(spec: TimescaleSpec) -> dict[str, tuple[str, ...]]:
    """Return the columns of `bars` that each column of `features` is computed from."""
    return _FEATURE_KEY_SOURCES | {feature.name: feature.sources for feature in feature_list(spec)}


def feature_descriptions(spec: TimescaleSpec) -> dict[str, str]:
    """Return each feature's formula and unit."""
    return {feature.name: f"{feature.formula} [{feature.unit}]" for feature in feature_list(spec)}
