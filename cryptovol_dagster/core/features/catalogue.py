"""Features: values known at the end of a bar, from windows over bars; never a price or volume level.

Each feature is declared once (`feature_list`): the declaration names, documents, computes and versions it.
One function serves the hourly asset, replay, the benchmark and the live path; `docs/reference/features.md`
and the lake's schema are rendered from the same table. There are two stages: a product's *own* features from
its own bars, and *cross* features from own features of the reference set's products, of the same bar.

Does not belong here: the formulas (`formulas.py`), labels, scaling to a training span, anything that uses
data after a row's own bar.

Realised volatility and the HAR set after Corsi (2009).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from cryptovol_dagster.core.features import formulas
from cryptovol_dagster.core.features.block import WARM_PERCENT
from cryptovol_dagster.core.features.grid import FeatureError
from cryptovol_dagster.core.features.windows import ewma_length
from cryptovol_dagster.core.market.fixed_point import MAX_WINDOW_BARS
from cryptovol_dagster.core.specs import DAY_S, DEFAULT_REFERENCE_SET, HOUR_S, TimescaleSpec

#: Increased when a formula changes its meaning without changing its text.
FEATURES_VERSION = 3
#: Windows, in bars, of the families that use fewer windows than the spec has; longer ones than the spec's
#: longest are left out.
RETURN_WINDOWS = (1, 5, 30, 60, 300)
QUOTE_WINDOWS = (15, 60, 300)
SHAPE_WINDOWS = (60, 300, 900)
RANGE_WINDOWS = (15, 60, 300, 900)
#: (short, long) of the ratios.
RV_RATIOS = ((15, 300), (60, 900), (300, 3_600))
RANGE_RATIOS = ((15, 300), (60, 900))
INTENSITY_RATIO = VOLUME_RATIO = (15, 300)
#: Windows of the features that are averaged over the other products.
CROSS_GK_WINDOWS, CROSS_RETURN_WINDOWS = (15, 60, 300), (5, 60)
#: Bars of this length and longer have windows of their own: one candle contains much information, a day is
#: 1,440 bars, and the position of a minute within its hour matters.
LONG_BAR_S = 60
#: A feature with a longer window is optional, so that no row waits for it. Otherwise most of the first hour
#: after each start could not be scored, and a short recording could not be learned from.
MAX_REQUIRED_WINDOW_BARS = 2_400


@dataclass(frozen=True)
class Feature:
    """One column: its name, its meaning, and its computation.

    Attributes:
        name: column name.
        family: group in lists.
        unit: of the value; "ln(...)" for the logarithm of a quantity.
        sources: columns of `BarGrid` it is computed from.
        window_bars: bars it looks back over, its own included.
        formula: for readers; part of the version hash.
        optional: NaN where its sources are unknown (a feed without trades or sizes, no other product, a
            look-back of an hour); such a row is still valid. Every other feature must be known.
        compute: fills one block's values and returns where its window is warm; None for a cross feature.
        mean_of: the own feature that a cross feature averages over the other products of the reference set;
            None for an own one.
    """

    name: str
    family: str
    unit: str
    sources: tuple[str, ...]
    window_bars: int
    formula: str
    optional: bool = False
    compute: formulas.Compute | None = field(default=None, repr=False, compare=False)
    mean_of: str | None = None

    @property
    def is_own(self) -> bool:
        """Whether it is computed from the product's own bars alone."""
        return self.mean_of is None

    def document(self) -> dict[str, Any]:
        """Return the declaration without its code, for documents, schema and hash."""
        return {
            "name": self.name,
            "family": self.family,
            "unit": self.unit,
            "sources": list(self.sources),
            "window_bars": self.window_bars,
            "formula": self.formula,
            "optional": self.optional,
        }


@dataclass(frozen=True)
class _Windows:
    """Windows in use, in bars."""

    all: tuple[int, ...]
    half_lives: tuple[int, ...]
    families: Families

    def up_to_longest(self, windows: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(window for window in windows if window <= self.all[-1])

    def pairs(self, ratios: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int]]:
        """Yield the ratios whose windows are both in use."""
        return ((a, b) for a, b in ratios if {a, b} <= set(self.all))


@dataclass(frozen=True)
class Families:
    """Windows, in bars, of the families that use fewer windows than the spec has.

    Attributes:
        returns: of returns.
        shape: of jumps and downside.
        ranges: of Parkinson's volatility.
        log_ranges: of mean and deviation of the logarithm of a bar's range.
        rv_ratios: (short, long).
        range_ratios: (short, long).
        volume_ratios: (short, long).
        cross_gk: of the other products' Garman–Klass volatility.
        cross_returns: of their returns.
        bar_shape: whether the bar's own shape, and the position of its end within the hour, are features.
    """

    returns: tuple[int, ...]
    shape: tuple[int, ...]
    ranges: tuple[int, ...]
    log_ranges: tuple[int, ...]
    rv_ratios: tuple[tuple[int, int], ...]
    range_ratios: tuple[tuple[int, int], ...]
    volume_ratios: tuple[tuple[int, int], ...]
    cross_gk: tuple[int, ...]
    cross_returns: tuple[int, ...]
    bar_shape: bool


SHORT_BARS = Families(
    returns=RETURN_WINDOWS,
    shape=SHAPE_WINDOWS,
    ranges=RANGE_WINDOWS,
    log_ranges=(),
    rv_ratios=RV_RATIOS,
    range_ratios=RANGE_RATIOS,
    volume_ratios=(VOLUME_RATIO,),
    cross_gk=CROSS_GK_WINDOWS,
    cross_returns=CROSS_RETURN_WINDOWS,
    bar_shape=False,
)
LONG_BARS = Families(
    returns=(1, 5, 30),
    shape=(5, 60, 240),
    ranges=(1, 5, 15, 60),
    log_ranges=(15, 60),
    rv_ratios=(),
    range_ratios=(),
    volume_ratios=((1, 60), (5, 60), (5, 1_440), (15, 1_440), (60, 1_440)),
    cross_gk=(1, 5, 15, 60),
    cross_returns=(1, 5),
    bar_shape=True,
)


def families(spec: TimescaleSpec) -> Families:
    """Return the windows of a timescale's families."""
    return LONG_BARS if spec.bar_interval_s >= LONG_BAR_S else SHORT_BARS


_CROSS = "cross_"
_LN_VOLATILITY, _LN_BPS, _LN_RATIO = "ln(volatility per √bar)", "ln(bps)", "log ratio"


def _returns(windows: _Windows) -> Iterator[Feature]:
    for w in windows.up_to_longest(windows.families.returns):
        text = f"Σ r over {w} bars"
        yield Feature(f"ret_{w}", "return", "log return", ("ret_nano",), w, text, compute=formulas.ret(w))
    for w in windows.up_to_longest(windows.families.returns):
        text, compute = f"|Σ r over {w} bars|", formulas.abs_ret(w)
        yield Feature(f"abs_ret_{w}", "return", "log return", ("ret_nano",), w, text, compute=compute)


def _volatility(windows: _Windows) -> Iterator[Feature]:
    for short, family, source, what, compute in (
        ("rv", "realised volatility", "ret_nano", "r²", formulas.ln_rv),
        ("gk", "Garman–Klass volatility", "gk_atto", "GK", formulas.ln_gk),
    ):
        for w in windows.all:
            text = f"ln(√(Σ {what} / n) + 1e-7), n valid bars of {w}"
            yield Feature(
                f"ln_{short}_{w}", family, _LN_VOLATILITY, (source,), w, text, _is_long(w), compute(w)
            )
    for which, (short, source, what) in enumerate((("rv", "ret_nano", "r²"), ("gk", "gk_atto", "GK"))):
        for h in windows.half_lives:
            length = ewma_length(h)
            text = f"ln(√EWMA({what}) + 1e-7), half-life {h} bars, kernel of {length} bars"
            name, compute, is_long = f"ln_ewma_{short}_{h}", formulas.ln_ewma(h, which), _is_long(length)
            yield Feature(name, "EWMA", _LN_VOLATILITY, (source,), length, text, is_long, compute)
    for a, b in windows.pairs(windows.families.rv_ratios):
        text, compute = f"ln RV({a}) − ln RV({b})", formulas.difference(f"ln_rv_{a}", f"ln_rv_{b}")
        yield Feature(
            f"rv_ratio_{a}_{b}",
            "realised volatility",
            _LN_RATIO,
            ("ret_nano",),
            b,
            text,
            _is_long(b),
            compute,
        )


def _is_long(window: int) -> bool:
    return window > MAX_REQUIRED_WINDOW_BARS


def _shape(windows: _Windows) -> Iterator[Feature]:
    """Yield features of the shape of movement: jumps or even, down or up, within bars or between them."""
    used = windows.up_to_longest(windows.families.shape)
    for w in used:
        text = f"ln(√BV + 1e-7), BV = π/2 · Σ |r_i||r_i−1| / n, n pairs of adjacent valid bars of {w}"
        yield Feature(
            f"ln_bv_{w}", "jumps", _LN_VOLATILITY, ("ret_nano",), w, text, compute=formulas.ln_bipower(w)
        )
    for w in used:
        text = f"max(0, 1 − BV/RV²) over {w} bars; 0 where RV is 0"
        yield Feature(
            f"jump_share_{w}", "jumps", "share", ("ret_nano",), w, text, compute=formulas.jump_share(w)
        )
    for w in used:
        text, compute = f"ln(max |r| over {w} bars + 1e-7)", formulas.ln_max_abs_ret(w, used)
        yield Feature(
            f"ln_max_abs_ret_{w}", "jumps", "ln(log return)", ("ret_nano",), w, text, compute=compute
        )
    for w in used:
        text = f"Σ r² of the bars with r < 0 / Σ r², over {w} bars; 0.5 where RV is 0"
        compute = formulas.downside_share(w)
        yield Feature(f"downside_share_{w}", "downside", "share", ("ret_nano",), w, text, compute=compute)
    family, sources = "Parkinson volatility", ("range_nano",)
    for w in windows.up_to_longest(windows.families.ranges):
        text = (
            f"ln(√(Σ (ln high − ln low)² / (4 ln 2 · n)) + 1e-7), the range of each bar, n valid bars of {w}"
        )
        compute = formulas.ln_parkinson(w)
        yield Feature(f"ln_parkinson_{w}", family, _LN_VOLATILITY, sources, w, text, compute=compute)
    for a, b in windows.families.range_ratios:
        if b <= windows.all[-1]:
            text = f"ln Parkinson({a}) − ln Parkinson({b})"
            compute = formulas.difference(f"ln_parkinson_{a}", f"ln_parkinson_{b}")
            yield Feature(f"range_ratio_{a}_{b}", family, _LN_RATIO, sources, b, text, compute=compute)
    family, unit = "bar shape", "ln(log return)"
    for w in windows.up_to_longest(windows.families.log_ranges):
        text = f"mean of ln(ln high − ln low + 1e-5) over the valid bars of {w}"
        yield Feature(f"mean_ln_range_{w}", family, unit, sources, w, text, compute=formulas.mean_ln_range(w))
        text = f"standard deviation of ln(ln high − ln low + 1e-5) over the valid bars of {w} (divisor n)"
        yield Feature(f"std_ln_range_{w}", family, unit, sources, w, text, compute=formulas.std_ln_range(w))
    if windows.families.bar_shape:
        text = "(2 close − high − low)/(high − low): −1 at the bar's low, 1 at its high; 0 without a range"
        sources, compute = ("high", "low", "close"), formulas.close_place_last
        yield Feature("close_place_last", family, "share", sources, 1, text, compute=compute)


def _spread(windows: _Windows) -> Iterator[Feature]:
    sources, used = ("spread_nano",), windows.up_to_longest(QUOTE_WINDOWS)
    text = "ln(spread + 0.001 bps), bar's end"
    yield Feature("ln_spread_last", "spread", _LN_BPS, sources, 1, text, compute=formulas.ln_spread_last)
    for w in used:
        text, compute = f"ln(mean spread of the valid bars of {w} + 0.001 bps)", formulas.ln_spread_mean(w)
        yield Feature(f"ln_spread_mean_{w}", "spread", _LN_BPS, sources, w, text, compute=compute)
    for w in used:
        text = f"ln(greatest spread of the valid bars of {w} + 0.001 bps)"
        compute = formulas.ln_spread_max(w, used)
        yield Feature(f"ln_spread_max_{w}", "spread", _LN_BPS, sources, w, text, compute=compute)
    tick_bars = max(used, default=0)
    for w in used:
        text = (
            f"share of the valid bars of {w} whose spread is over 1.5 times the smallest positive one of the "
            f"{tick_bars} bars up to each"
        )
        name, compute = f"spread_above_tick_{w}", formulas.spread_above_tick(w, tick_bars)
        yield Feature(name, "spread", "share", sources, w + tick_bars, text, compute=compute)


def _book(windows: _Windows) -> Iterator[Feature]:
    sources, used = ("imbalance_nano",), windows.up_to_longest(QUOTE_WINDOWS)
    text = "(bid size − ask size)/(bid size + ask size), bar's end"
    yield Feature("imbalance_last", "book", "share", sources, 1, text, True, formulas.imbalance_last)
    for w in used:
        text, compute = f"|mean imbalance of the valid bars of {w}|", formulas.abs_imbalance_mean(w)
        yield Feature(f"abs_imbalance_mean_{w}", "book", "share", sources, w, text, True, compute)
    for w in used:
        text = f"standard deviation of imbalance over the valid bars of {w} (divisor n)"
        yield Feature(
            f"imbalance_std_{w}", "book", "share", sources, w, text, True, formulas.imbalance_std(w)
        )
    sources, text = (
        ("microprice_nano",),
        "(microprice − mid)/mid, bar's end; weighted by the other side's size",
    )
    yield Feature("microprice_last", "book", "bps", sources, 1, text, True, formulas.microprice_last)
    for w in used:
        text, compute = f"mean (microprice − mid)/mid of the valid bars of {w}", formulas.microprice_mean(w)
        yield Feature(f"microprice_mean_{w}", "book", "bps", sources, w, text, True, compute)


def _activity(windows: _Windows) -> Iterator[Feature]:
    used = windows.up_to_longest(QUOTE_WINDOWS)
    for w in used:
        text, compute = f"ln(quote updates / n + 0.01), n valid bars of {w}", formulas.ln_intensity(w)
        yield Feature(
            f"ln_intensity_{w}", "intensity", "ln(updates per bar)", ("n_updates",), w, text, compute=compute
        )
    a, b = INTENSITY_RATIO
    if b <= windows.all[-1]:
        text = f"ln intensity({a}) − ln intensity({b})"
        compute = formulas.difference(f"ln_intensity_{a}", f"ln_intensity_{b}")
        yield Feature(
            f"intensity_ratio_{a}_{b}", "intensity", _LN_RATIO, ("n_updates",), b, text, compute=compute
        )
    for w in used:
        text, compute = f"ln(changes of mid / n + 0.01), n valid bars of {w}", formulas.ln_mid_changes(w)
        name, unit = f"ln_mid_changes_{w}", "ln(changes per bar)"
        yield Feature(name, "intensity", unit, ("n_mid_changes",), w, text, compute=compute)


def _trades(windows: _Windows) -> Iterator[Feature]:
    used = windows.up_to_longest(QUOTE_WINDOWS)
    for w in used:
        text, compute = f"ln(trades / n + 0.01), n bars of {w} with known trades", formulas.ln_trade_rate(w)
        yield Feature(
            f"ln_trade_rate_{w}", "trades", "ln(trades per bar)", ("n_trades",), w, text, True, compute
        )
    for a, b in windows.families.volume_ratios:
        if b > windows.all[-1]:
            continue
        text = f"ln(volume a bar over {a} / volume a bar over {b} + 0.01); null where nothing was traded"
        compute = formulas.ln_volume_ratio(a, b)
        yield Feature(f"volume_ratio_{a}_{b}", "trades", _LN_RATIO, ("volume_e8",), b, text, True, compute)
    for w in used:
        text = f"(bought − sold)/(bought + sold) by takers over {w} bars; null where nothing was traded"
        sources, compute = ("signed_volume_e8", "volume_e8"), formulas.signed_volume_share(w)
        yield Feature(f"signed_volume_share_{w}", "trades", "share", sources, w, text, True, compute)


def _time(windows: _Windows, spec: TimescaleSpec) -> Iterator[Feature]:
    waves = (("day", DAY_S, "day"), ("week", formulas.WEEK_S, "week from Monday"))
    of_hour = (("hour", HOUR_S, "hour"),) if windows.families.bar_shape else ()
    for period, period_s, text in (*waves, *of_hour):
        for name, wave in (("sin", np.sin), ("cos", np.cos)):
            formula = f"{name}(2π · share of the {text} that has passed at the bar's end, UTC)"
            compute = formulas.calendar(wave, period_s)
            yield Feature(f"{name}_{period}", "calendar", "", ("bar_start",), 1, formula, compute=compute)
    if windows.families.bar_shape:
        for name, period_s, text in (
            ("phase_hour", HOUR_S, "hour"),
            ("phase_quarter", HOUR_S // 4, "quarter of an hour"),
            ("phase_5min", HOUR_S // 12, "five minutes"),
        ):
            formula = f"share of the {text} that has passed at the bar's end, UTC"
            yield Feature(
                name, "calendar", "share", ("bar_start",), 1, formula, compute=formulas.phase(period_s)
            )
    yield Feature(
        "age_s", "age", "s", ("age_s",), 1, "bar's end − event time of its quote", compute=formulas.age
    )
    longest = max(w for w in windows.all if not _is_long(w) or w == windows.all[0])
    text = f"ln(bars since a new segment began, its own and this one included, at most {longest}, in seconds)"
    compute = formulas.ln_segment_age(longest, spec.bar_interval_s)
    yield Feature("ln_segment_age", "age", "ln(s)", ("new_segment",), longest, text, compute=compute)


def _cross(own: dict[str, Feature], used: Families) -> Iterator[Feature]:
    names = [f"ln_gk_{w}" for w in used.cross_gk] + [f"abs_ret_{w}" for w in used.cross_returns]
    for name in names:
        if name in own:
            of = own[name]
            text = f"mean over the other products of {name}, those that have one"
            yield Feature(
                f"{_CROSS}{name}", "cross", of.unit, of.sources, of.window_bars, text, True, mean_of=name
            )


@lru_cache(maxsize=32)
def feature_list(spec: TimescaleSpec) -> tuple[Feature, ...]:
    """Return every feature of a timescale, in column order: own features, then cross features.

    Raises:
        FeatureError: a window or half-life is below 1, or too long for exact sums.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> first = feature_list(SPEC)[0]
        >>> first.name, first.window_bars, first.formula
        ('ret_1', 1, 'Σ r over 1 bars')
    """
    windows = _Windows(
        tuple(sorted(spec.windows_bars)), tuple(sorted(spec.ewma_half_lives_bars)), families(spec)
    )
    if not windows.all or windows.all[0] < 1 or windows.all[-1] > MAX_WINDOW_BARS:
        raise FeatureError(
            f"timescale {spec.name}: windows_bars {list(windows.all)} must lie within 1 … {MAX_WINDOW_BARS}"
        )
    if windows.half_lives and windows.half_lives[0] < 1:
        raise FeatureError(
            f"timescale {spec.name}: ewma_half_lives_bars {list(windows.half_lives)} must be at least 1"
        )
    own: list[Feature] = []
    of_quotes = (_spread, _book, _activity) if spec.quotes else ()
    for family in (_returns, _volatility, _shape, *of_quotes, _trades):
        own += family(windows)
    own += _time(windows, spec)
    return (*own, *_cross({feature.name: feature for feature in own}, windows.families))


def feature_names(spec: TimescaleSpec) -> tuple[str, ...]:
    """Return the column names, in order."""
    return tuple(feature.name for feature in feature_list(spec))


def own_features(spec: TimescaleSpec) -> tuple[Feature, ...]:
    """Return the features of a product's own bars, which are those of live rows."""
    return tuple(feature for feature in feature_list(spec) if feature.is_own)


def own_feature_names(spec: TimescaleSpec) -> tuple[str, ...]:
    """Return the column names of `own_features`, in order."""
    return tuple(feature.name for feature in own_features(spec))


def optional_feature_names(spec: TimescaleSpec) -> frozenset[str]:
    """Return the names of the features that a valid row may lack."""
    return frozenset(feature.name for feature in feature_list(spec) if feature.optional)


def calendar_feature_names(spec: TimescaleSpec) -> tuple[str, ...]:
    """Return the names of the calendar features, in column order: they do not depend on the market."""
    return tuple(feature.name for feature in feature_list(spec) if feature.family == "calendar")


def market_feature_names(spec: TimescaleSpec) -> tuple[str, ...]:
    """Return the names of all other features, in column order: those that drift is measured on."""
    return tuple(feature.name for feature in feature_list(spec) if feature.family != "calendar")


def cross_feature_names(spec: TimescaleSpec) -> tuple[str, ...]:
    """Return the names of the cross features, in column order."""
    return tuple(feature.name for feature in feature_list(spec) if not feature.is_own)


def is_cross(name: str) -> bool:
    """Return whether a column of that name is a cross feature: its rows depend on the reference set.

    Examples:
        >>> is_cross("cross_ln_gk_15"), is_cross("ln_gk_15")
        (True, False)
    """
    return name.startswith(_CROSS)


def feature_hash(spec: TimescaleSpec) -> str:
    """Return a short stable hash of the definitions: declarations, warm-up rule, bar and quote limits.

    It is the version of the own features. That of rows with cross features is `features_version`.
    """
    meaning = {
        "version": FEATURES_VERSION,
        "warm_percent": WARM_PERCENT,
        "bar_interval_s": spec.bar_interval_s,
        "stale_after_s": spec.stale_after_s,
        "gap_after_s": spec.gap_after_s,
        "required_window_bars": MAX_REQUIRED_WINDOW_BARS,
        "features": [feature.document() for feature in feature_list(spec)],
    }
    return _short_hash(meaning)


def features_version(spec: TimescaleSpec) -> str:
    """Return the version of rows with own and cross features."""
    return with_reference_set(feature_hash(spec), spec.reference_set)


def with_reference_set(version: str, products: Sequence[str]) -> str:
    """Return the version of rows: that of their own features, and the hash of a set that is not the default.

    Args:
        version: `feature_hash` of the rows.
        products: the reference set of their cross features, in order.

    Examples:
        >>> with_reference_set("39d1f5be12f8", ("BTC-USD", "ETH-USD"))
        '39d1f5be12f8'
        >>> with_reference_set("39d1f5be12f8", ("BTC-USD", "ETH-USD", "SOL-USD"))
        '39d1f5be12f8+309eb6f49e9d'
    """
    if tuple(products) == DEFAULT_REFERENCE_SET:
        return version
    return f"{version}+{_short_hash(list(products))}"


def reference_set_before(products: Iterable[str]) -> tuple[str, ...]:
    """Return the reference set of what was computed from these products before there was one.

    Each mean ran over all other products. Over those of the default set that is what it computes.

    Examples:
        >>> reference_set_before(["ETH-USD"]), reference_set_before(["BTC-USD", "SOL-USD"])
        (('BTC-USD', 'ETH-USD'), ('BTC-USD', 'SOL-USD'))
    """
    products = tuple(products)
    return DEFAULT_REFERENCE_SET if set(products) <= set(DEFAULT_REFERENCE_SET) else products


def _short_hash(meaning: Any) -> str:
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]


def lookback_bars(spec: TimescaleSpec) -> int:
    """Return the number of bars that a row may depend on, its own included: the longest window or kernel.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> lookback_bars(SPEC)
        120
    """
    return max(feature.window_bars for feature in feature_list(spec))
