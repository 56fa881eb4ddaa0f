"""Checks of the minute candles."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import numpy as np

from cryptovol_dagster.core.market.candle_checks import NUMBERS
from cryptovol_dagster.core.market.candle_rollup import CANDLES
from cryptovol_dagster.defs.assets.candles import CANDLES_KEY
from cryptovol_dagster.defs.checks.framework import Check, Stored
from cryptovol_dagster.defs.checks.schema import schema_check

#: Share of a day's minutes without a candle from which the check warns.
MAX_HOLE_SHARE = 0.05


def candle_checks() -> list[Check]:
    """Declare the checks of `minutes/candles`."""
    return [
        schema_check(CANDLES_KEY, CANDLES),
        Check(
            CANDLES_KEY,
            "no_impossible_ohlc",
            _possible,
            description="Every candle has positive prices, low ≤ open, close ≤ high, and no negative volume; "
            "each minute of a product appears once.",
            blocking=True,
        ),
        Check(
            CANDLES_KEY,
            "overlap_agrees",
            _overlap_agrees,
            description="Where the exchange's candle and the feed's trades are both known they agree.",
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
        f"expected the {overlap['compared']} minutes of both sources to agree, found {differing} that "
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
