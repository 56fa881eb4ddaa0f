"""Meaning of a feature in plain words, for alerts and tables: what it measures, and over which time.

Belongs here: words for readers. They are not part of the version of the features; formulas are
(`catalogue.py`).
"""

from __future__ import annotations

import re

from cryptovol_dagster.core.specs import HOUR_S

_CROSS = "cross_"
#: By name without its windows; ``{}`` is a window, in the order of the name.
_WORDS = {
    "ret": "return of the last {}",
    "abs_ret": "size of the price move of the last {}",
    "ln_rv": "volatility of the last {}",
    "ln_gk": "volatility of the last {}, from the range of each bar",
    "ln_ewma_rv": "volatility weighted towards now, half-life {}",
    "ln_ewma_gk": "volatility weighted towards now, half-life {}, from the range of each bar",
    "rv_ratio": "volatility of the last {} compared with the last {}",
    "ln_bv": "volatility of the last {} without jumps",
    "jump_share": "share of jumps in the movement of the last {}",
    "ln_max_abs_ret": "largest move of one bar in the last {}",
    "downside_share": "share of falls in the movement of the last {}",
    "ln_parkinson": "volatility of the last {}, from highs and lows",
    "range_ratio": "range of the last {} compared with the last {}",
    "mean_ln_range": "mean range of a bar in the last {}",
    "std_ln_range": "how much the range of a bar varies in the last {}",
    "close_place_last": "place of the close between low and high of the bar",
    "ln_spread_last": "spread now",
    "ln_spread_mean": "mean spread of the last {}",
    "ln_spread_max": "largest spread of the last {}",
    "spread_above_tick": "share of the last {} with a spread above one tick",
    "imbalance_last": "bid size compared with ask size now",
    "abs_imbalance_mean": "one-sidedness of the quoted sizes in the last {}",
    "imbalance_std": "how much the balance of quoted sizes varies in the last {}",
    "microprice_last": "pull of the quoted sizes on the price now",
    "microprice_mean": "pull of the quoted sizes on the price in the last {}",
    "ln_intensity": "rate of quote updates in the last {}",
    "intensity_ratio": "rate of quote updates of the last {} compared with the last {}",
    "ln_mid_changes": "rate of price changes in the last {}",
    "ln_trade_rate": "rate of trades in the last {}",
    "volume_ratio": "traded volume of the last {} compared with the last {}",
    "signed_volume_share": "buying less selling by takers in the last {}",
    "sin_day": "time of day",
    "cos_day": "time of day",
    "sin_week": "time of week",
    "cos_week": "time of week",
    "sin_hour": "place in the hour",
    "cos_hour": "place in the hour",
    "phase_hour": "place in the hour",
    "phase_quarter": "place in the quarter of an hour",
    "phase_5min": "place in the five minutes",
    "age_s": "age of the quote",
    "ln_segment_age": "time since the last break of the data",
}
_WINDOWS = re.compile(r"(?:_\d+)+$")


def meaning(name: str, bar_interval_s: int) -> str:
    """Return what a feature measures in plain words; the name itself where there are no words for it.

    Args:
        name: of the feature.
        bar_interval_s: length of a bar in seconds.

    Examples:
        >>> meaning("rv_ratio_15_300", 1)
        'volatility of the last 15 s compared with the last 5 min'
        >>> meaning("cross_ln_gk_60", 60), meaning("my_feature_5", 60)
        ('other products: volatility of the last 1 h, from the range of each bar', 'my_feature_5')
    """
    if name.startswith(_CROSS):
        return f"other products: {meaning(name.removeprefix(_CROSS), bar_interval_s)}"
    found = _WINDOWS.search(name)
    windows = found.group()[1:].split("_") if found else []
    words = _WORDS.get(_WINDOWS.sub("", name))
    if words is None or words.count("{}") != len(windows):
        return name
    return words.format(*(_duration(int(bars) * bar_interval_s) for bars in windows))


def _duration(seconds: int) -> str:
    for unit_s, unit in ((HOUR_S, "h"), (60, "min")):
        if seconds % unit_s == 0:
            return f"{seconds // unit_s} {unit}"
    return f"{seconds} s"
