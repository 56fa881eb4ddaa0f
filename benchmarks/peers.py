"""The same bars and the same features by pandas and by Polars, written the way their users would.

Both take the same cleaned ticks and the same rules (as-of quotes, carry and gap, breaks, 90 % warm-up, finite
EWMA kernels) and are compared number by number with the pipeline's own result, so that neither computes less.
The day has no trades, so the features of trades are null on all sides.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from cryptovol_dagster.core.features.catalogue import (
    CROSS_GK_WINDOWS,
    CROSS_RETURN_WINDOWS,
    QUOTE_WINDOWS,
    RANGE_RATIOS,
    RANGE_WINDOWS,
    RETURN_WINDOWS,
    RV_RATIOS,
    SHAPE_WINDOWS,
    feature_list,
    own_features,
)
from cryptovol_dagster.core.market.ticks import TickColumns
from cryptovol_dagster.core.specs import NS, TimescaleSpec

_GK = 2 * math.log(2) - 1
_CROSS = [f"ln_gk_{w}" for w in CROSS_GK_WINDOWS] + [f"abs_ret_{w}" for w in CROSS_RETURN_WINDOWS]
_TICK_BARS = max(QUOTE_WINDOWS)
#: Monday is three days after the day of the week on which Unix time began.
_PERIODS = {"day": (86_400, 0), "week": (7 * 86_400, 3 * 86_400)}
_TICK_COLUMNS = ("event_time_ns", "bid", "ask", "bid_size", "ask_size", "gap_before")


def _names(spec: TimescaleSpec) -> list[str]:
    """Own features but those of trades, in column order."""
    return [feature.name for feature in own_features(spec) if feature.family != "trades"]


def _longest_age(spec: TimescaleSpec) -> int:
    """Bars at which the age of a segment ends."""
    return next(feature.window_bars for feature in feature_list(spec) if feature.name == "ln_segment_age")


def _need(window: int) -> int:
    """Valid bars that a window needs."""
    return -(-window * 9 // 10)


def _lossy(
    times: np.ndarray, gap_before: np.ndarray, start_ns: int, n_bars: int, spec: TimescaleSpec
) -> np.ndarray:
    """Bars from the tick before a loss, a gap length back at most, to the tick after it."""
    lossy = np.zeros(n_bars, dtype=bool)
    for k in np.flatnonzero(gap_before):
        since = times[k] - int(spec.gap_after_s * NS)
        if k:
            since = max(since, times[k - 1])
        first = max((since - start_ns) // spec.bar_ns, 0)
        lossy[first : (times[k] - start_ns) // spec.bar_ns + 1] = True
    return lossy


def pandas_input(ticks: TickColumns) -> list[pd.DataFrame]:
    """A frame a product."""
    frame = pd.DataFrame({name: getattr(ticks, name) for name in ("product", *_TICK_COLUMNS)})
    return [own.drop(columns="product").reset_index(drop=True) for _, own in frame.groupby("product")]


def by_pandas(
    frames: list[pd.DataFrame], start_ns: int, n_bars: int, spec: TimescaleSpec
) -> list[pd.DataFrame]:
    """Features of every product, by `groupby`, `rolling` and `ewm`."""
    own = [_pandas_features(_pandas_bars(ticks, start_ns, n_bars, spec), spec, start_ns) for ticks in frames]
    tables = []
    for k, frame in enumerate(own):
        fresh, others = frame["age_s"].notna(), own[:k] + own[k + 1 :]
        crossed = {
            f"cross_{name}": pd.concat([other[name] for other in others], axis=1).mean(axis=1).where(fresh)
            for name in _CROSS
        }
        tables.append(pd.concat([frame, pd.DataFrame(crossed)], axis=1))
    return [
        table.reindex(columns=[feature.name for feature in feature_list(spec)]).astype(float)
        for table in tables
    ]


def _pandas_bars(ticks: pd.DataFrame, start_ns: int, n_bars: int, spec: TimescaleSpec) -> pd.DataFrame:
    mid = (ticks["bid"] + ticks["ask"]) / 2
    near = ~ticks["gap_before"] & (ticks["event_time_ns"].diff() <= spec.gap_after_s * NS)
    changed = near & (mid.diff().abs() > mid.shift() * 0.5e-9)
    ticks = ticks.assign(mid=mid, changed=changed, bar=(ticks["event_time_ns"] - start_ns) // spec.bar_ns)
    grouped = ticks.groupby("bar")
    bars = grouped.agg(
        time=("event_time_ns", "last"),
        bid=("bid", "last"),
        ask=("ask", "last"),
        bid_size=("bid_size", "last"),
        ask_size=("ask_size", "last"),
        first=("mid", "first"),
        close=("mid", "last"),
        high=("mid", "max"),
        low=("mid", "min"),
        lost=("gap_before", "max"),
        updates=("mid", "size"),
        changes=("changed", "sum"),
    ).reindex(range(n_bars))
    bars[["updates", "changes"]] = bars[["updates", "changes"]].fillna(0)
    bars["lost"] = bars["lost"].eq(True)
    carried = ["time", "bid", "ask", "bid_size", "ask_size", "close"]
    bars[carried] = bars[carried].ffill()
    end_ns = start_ns + spec.bar_ns * (np.arange(n_bars) + 1)
    age = (end_ns - bars["time"]) / NS
    has = age <= spec.gap_after_s
    follows = has & has.shift(fill_value=False) & ~bars["lost"]
    opened = bars["close"].shift().where(follows, bars["first"])
    high = np.fmax(bars["high"], opened)
    low = np.fmin(bars["low"], opened)
    ret = (1e9 * (np.log(bars["close"]) - np.log(bars["close"].shift()))).round()
    span = (1e9 * (np.log(high) - np.log(low))).round()
    fresh = has & (age <= spec.stale_after_s)
    lossy = _lossy(ticks["event_time_ns"].to_numpy(), ticks["gap_before"].to_numpy(), start_ns, n_bars, spec)
    good = follows & fresh & (span <= 5e7) & (ret.abs() <= 5e7) & ~lossy
    spread = (bars["ask"] - bars["bid"]) / bars["close"]
    imbalance = (bars["bid_size"] - bars["ask_size"]) / (bars["bid_size"] + bars["ask_size"])
    return pd.DataFrame(
        {
            "ret": ret.where(good),
            "gk": (0.5 * span**2 - _GK * ret**2).round().where(good),
            "range": span.where(good),
            "spread": (1e9 * spread).round().where(fresh),
            "imbalance": imbalance.where(fresh),
            "microprice": (0.5e9 * imbalance * spread).round().where(fresh),
            "segment": has & ~follows,
            "updates": bars["updates"].where(fresh),
            "changes": bars["changes"].where(fresh),
            "age_s": age.where(fresh),
        }
    )


def _pandas_features(bars: pd.DataFrame, spec: TimescaleSpec, start_ns: int) -> pd.DataFrame:
    fresh = bars["age_s"].notna()
    squares = bars["ret"] ** 2
    columns: dict[str, pd.Series] = {}

    def rolling(series: pd.Series, window: int):
        return series.rolling(window, min_periods=_need(window))

    for w in RETURN_WINDOWS:
        columns[f"ret_{w}"] = rolling(bars["ret"], w).sum() * 1e-9
        columns[f"abs_ret_{w}"] = columns[f"ret_{w}"].abs()
    for w in spec.windows_bars:
        columns[f"ln_rv_{w}"] = np.log(np.sqrt(rolling(squares, w).mean()) * 1e-9 + 1e-7)
        columns[f"ln_gk_{w}"] = np.log(np.sqrt(rolling(bars["gk"], w).mean()) * 1e-9 + 1e-7)
    ok = bars["ret"].notna()
    for h in spec.ewma_half_lives_bars:
        decay, length = 0.5 ** (1 / h), 8 * h
        whole = (1 - decay**length) / (1 - decay)
        mass = _pandas_kernel(ok.astype(float), h)
        for name, values in (("rv", squares), ("gk", bars["gk"])):
            mean = _pandas_kernel(values.fillna(0), h) / mass
            mean = mean.clip(lower=0).where(mass >= 0.9 * whole)
            columns[f"ln_ewma_{name}_{h}"] = np.log(np.sqrt(mean) * 1e-9 + 1e-7)
    for a, b in RV_RATIOS:
        columns[f"rv_ratio_{a}_{b}"] = columns[f"ln_rv_{a}"] - columns[f"ln_rv_{b}"]
    columns["ln_spread_last"] = np.log(bars["spread"] * 1e-5 + 1e-3)
    columns["imbalance_last"] = bars["imbalance"]
    for w in QUOTE_WINDOWS:
        columns[f"ln_spread_mean_{w}"] = np.log(rolling(bars["spread"], w).mean() * 1e-5 + 1e-3)
        columns[f"ln_spread_max_{w}"] = np.log(rolling(bars["spread"], w).max() * 1e-5 + 1e-3)
        columns[f"abs_imbalance_mean_{w}"] = rolling(bars["imbalance"], w).mean().abs()
        columns[f"imbalance_std_{w}"] = rolling(bars["imbalance"], w).std(ddof=0)
        columns[f"ln_intensity_{w}"] = np.log(rolling(bars["updates"], w).mean() + 0.01)
        columns[f"ln_mid_changes_{w}"] = np.log(rolling(bars["changes"], w).mean() + 0.01)
    columns["intensity_ratio_15_300"] = columns["ln_intensity_15"] - columns["ln_intensity_300"]
    columns["age_s"] = bars["age_s"]
    columns |= _pandas_shape(bars, squares) | _pandas_book(bars) | _pandas_time(bars, spec, start_ns)
    return pd.DataFrame({name: columns[name].where(fresh) for name in _names(spec)})


def _pandas_rolling(series: pd.Series, window: int):
    return series.rolling(window, min_periods=_need(window))


def _pandas_shape(bars: pd.DataFrame, squares: pd.Series) -> dict[str, pd.Series]:
    columns: dict[str, pd.Series] = {}
    size = bars["ret"].abs()
    pairs, falls = size * size.shift(), squares.where(~(bars["ret"] > 0), 0.0)
    for w in SHAPE_WINDOWS:
        variance, total = _pandas_rolling(squares, w).mean(), _pandas_rolling(squares, w).sum()
        warm = variance.notna()
        bipower = math.pi / 2 * pairs.rolling(w - 1, min_periods=1).mean().where(warm)
        columns[f"ln_bv_{w}"] = np.log(np.sqrt(bipower) * 1e-9 + 1e-7)
        columns[f"jump_share_{w}"] = (1 - bipower / variance).clip(lower=0).where(variance > 0, 0).where(warm)
        columns[f"ln_max_abs_ret_{w}"] = np.log(_pandas_rolling(size, w).max() * 1e-9 + 1e-7)
        share = _pandas_rolling(falls, w).sum() / total
        columns[f"downside_share_{w}"] = share.where(total > 0, 0.5).where(warm)
    for w in RANGE_WINDOWS:
        mean = _pandas_rolling(bars["range"] ** 2, w).mean() / (4 * math.log(2))
        columns[f"ln_parkinson_{w}"] = np.log(np.sqrt(mean) * 1e-9 + 1e-7)
    for a, b in RANGE_RATIOS:
        columns[f"range_ratio_{a}_{b}"] = columns[f"ln_parkinson_{a}"] - columns[f"ln_parkinson_{b}"]
    return columns


def _pandas_book(bars: pd.DataFrame) -> dict[str, pd.Series]:
    spread = bars["spread"]
    tick = spread.where(spread > 0).rolling(_TICK_BARS, min_periods=1).min()
    above = (spread > 1.5 * tick).astype(float).where(spread.notna())
    columns = {"microprice_last": bars["microprice"] * 1e-5}
    for w in QUOTE_WINDOWS:
        columns[f"spread_above_tick_{w}"] = _pandas_rolling(above, w).mean()
        columns[f"microprice_mean_{w}"] = _pandas_rolling(bars["microprice"], w).mean() * 1e-5
    return columns


def _pandas_time(bars: pd.DataFrame, spec: TimescaleSpec, start_ns: int) -> dict[str, pd.Series]:
    columns: dict[str, pd.Series] = {}
    place, longest = pd.Series(np.arange(len(bars))), _longest_age(spec)
    ends_ns = start_ns + spec.bar_ns * (place + 1)
    for name, (period_s, offset_s) in _PERIODS.items():
        share = (ends_ns + offset_s * NS) % (period_s * NS) / (period_s * NS)
        columns[f"sin_{name}"], columns[f"cos_{name}"] = (
            wave(2 * math.pi * share) for wave in (np.sin, np.cos)
        )
    since = (place - place.where(bars["segment"]).ffill() + 1).clip(upper=longest)
    since = since.fillna(pd.Series(np.where(place >= longest - 1, longest, np.nan)))
    columns["ln_segment_age"] = np.log(since * spec.bar_interval_s)
    return columns


def _pandas_kernel(values: pd.Series, half_life: int) -> pd.Series:
    """Σ over the finite kernel, from two infinite ones."""
    decay, length = 0.5 ** (1 / half_life), 8 * half_life
    infinite = values.ewm(halflife=half_life, adjust=False).mean() / (1 - decay)
    # `ewm` starts as if the first value had always been there; the first bar is never valid, so it is 0.
    return infinite - decay**length * infinite.shift(length, fill_value=0.0)


def polars_input(ticks: TickColumns) -> list:
    """A frame a product."""
    import polars as pl

    frame = pl.DataFrame({name: getattr(ticks, name) for name in ("product", *_TICK_COLUMNS)})
    return [own.drop("product") for own in frame.partition_by("product", maintain_order=True)]


def by_polars(frames: list, start_ns: int, n_bars: int, spec: TimescaleSpec) -> list:
    """Features of every product, by `group_by`, rolling and EWM expressions, as one lazy query."""
    import polars as pl

    plans = [_polars_plan(ticks, start_ns, n_bars, spec) for ticks in frames]
    own = pl.collect_all(plans)
    tables = []
    for k, frame in enumerate(own):
        others = own[:k] + own[k + 1 :]
        crossed = [
            pl.DataFrame([other[name].alias(str(number)) for number, other in enumerate(others)])
            .mean_horizontal()
            .alias(f"cross_{name}")
            for name in _CROSS
        ]
        fresh = pl.col("age_s").is_not_null()
        table = frame.with_columns(crossed).with_columns(
            pl.when(fresh).then(f"cross_{name}").alias(f"cross_{name}") for name in _CROSS
        )
        lacking = [feature.name for feature in feature_list(spec) if feature.name not in table.columns]
        table = table.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in lacking)
        tables.append(table.select(feature.name for feature in feature_list(spec)))
    return tables


def _polars_bars(ticks, start_ns: int, n_bars: int, spec: TimescaleSpec):
    """Plan the regular grid of bars: quotes carried forward, moves, and which bars follow the one before."""
    import polars as pl

    c = pl.col
    time = c("event_time_ns")
    lossy = _lossy(ticks["event_time_ns"].to_numpy(), ticks["gap_before"].to_numpy(), start_ns, n_bars, spec)
    near = ~c("gap_before") & (time.diff() <= int(spec.gap_after_s * NS))
    ticks = (
        ticks.lazy()
        .with_columns(mid=(c("bid") + c("ask")) / 2, bar=(time - start_ns) // spec.bar_ns)
        .with_columns(changed=near & (c("mid").diff().abs() > c("mid").shift() * 0.5e-9))
    )
    grouped = ticks.group_by("bar", maintain_order=True).agg(
        time.last().alias("time"),
        c("bid", "ask", "bid_size", "ask_size").last(),
        c("mid").first().alias("first"),
        c("mid").last().alias("close"),
        c("mid").max().alias("high"),
        c("mid").min().alias("low"),
        c("gap_before").any().alias("lost"),
        pl.len().alias("updates"),
        c("changed").sum().alias("changes"),
    )
    grid = pl.LazyFrame({"bar": np.arange(n_bars, dtype=np.int64), "lossy": lossy})
    bars = grid.join(grouped, on="bar", how="left", maintain_order="left").with_columns(
        c("updates", "changes").fill_null(0),
        c("lost").fill_null(False),
        c("time", "bid", "ask", "bid_size", "ask_size", "close").forward_fill(),
    )
    bars = bars.with_columns(age=(start_ns + (c("bar") + 1) * spec.bar_ns - c("time")) / NS)
    bars = bars.with_columns(has=(c("age") <= spec.gap_after_s).fill_null(False), before=c("close").shift())
    bars = bars.with_columns(
        follows=c("has") & c("has").shift(fill_value=False) & ~c("lost"),
        fresh=c("has") & (c("age") <= spec.stale_after_s),
    ).with_columns(opened=pl.when("follows").then("before").otherwise("first"))
    return bars.with_columns(
        r=(1e9 * (c("close").log() - c("before").log())).round(),
        s=(
            1e9 * (pl.max_horizontal("high", "opened").log() - pl.min_horizontal("low", "opened").log())
        ).round(),
    )


def _polars_plan(ticks, start_ns: int, n_bars: int, spec: TimescaleSpec):
    """Plan the features of a product's ticks, from the grid of bars on."""
    import polars as pl

    c = pl.col
    bars = _polars_bars(ticks, start_ns, n_bars, spec)
    good = c("follows") & c("fresh") & (c("s") <= 5e7) & (c("r").abs() <= 5e7) & ~c("lossy")
    fresh = c("fresh")
    sizes = (c("bid_size") - c("ask_size")) / (c("bid_size") + c("ask_size"))
    spread = (c("ask") - c("bid")) / c("close")
    bars = bars.select(
        fresh=fresh,
        bar=c("bar"),
        segment=c("has") & ~c("follows"),
        range=pl.when(good).then(c("s")),
        microprice=pl.when(fresh).then((0.5e9 * sizes * spread).round()),
        ret=pl.when(good).then(c("r")),
        gk=pl.when(good).then((0.5 * c("s") ** 2 - _GK * c("r") ** 2).round()),
        spread=pl.when(fresh).then((1e9 * spread).round()),
        imbalance=pl.when(fresh).then(sizes),
        updates=pl.when(fresh).then(c("updates").cast(pl.Float64)),
        changes=pl.when(fresh).then(c("changes").cast(pl.Float64)),
        age_s=pl.when(fresh).then(c("age")),
    ).with_columns(r2=c("ret") ** 2, ok=c("ret").is_not_null().cast(pl.Float64))
    tick = pl.when(c("spread") > 0).then("spread").rolling_min(_TICK_BARS, min_samples=1)
    bars = bars.with_columns(
        size=c("ret").abs(),
        falls=pl.when(c("ret") > 0).then(0.0).otherwise("r2"),
        above=pl.when(c("spread").is_not_null()).then(
            (c("spread") > 1.5 * tick).fill_null(False).cast(pl.Float64)
        ),
    ).with_columns(pairs=c("size") * c("size").shift())
    columns = _polars_columns(spec) | _polars_time(spec, start_ns)
    return bars.select(pl.when("fresh").then(columns[name]).alias(name) for name in _names(spec))


def _polars_columns(spec: TimescaleSpec) -> dict:
    import polars as pl

    c = pl.col
    columns: dict[str, pl.Expr] = {}
    for w in RETURN_WINDOWS:
        columns[f"ret_{w}"] = c("ret").rolling_sum(w, min_samples=_need(w)) * 1e-9
        columns[f"abs_ret_{w}"] = columns[f"ret_{w}"].abs()
    for w in spec.windows_bars:
        for name, source in (("rv", "r2"), ("gk", "gk")):
            mean = c(source).rolling_mean(w, min_samples=_need(w))
            columns[f"ln_{name}_{w}"] = (mean.sqrt() * 1e-9 + 1e-7).log()
    for h in spec.ewma_half_lives_bars:
        decay, length = 0.5 ** (1 / h), 8 * h
        whole = (1 - decay**length) / (1 - decay)
        mass = _polars_kernel(c("ok"), h)
        for name, source in (("rv", "r2"), ("gk", "gk")):
            mean = (_polars_kernel(c(source).fill_null(0.0), h) / mass).clip(lower_bound=0.0)
            warm = pl.when(mass >= 0.9 * whole).then(mean)
            columns[f"ln_ewma_{name}_{h}"] = (warm.sqrt() * 1e-9 + 1e-7).log()
    for a, b in RV_RATIOS:
        columns[f"rv_ratio_{a}_{b}"] = columns[f"ln_rv_{a}"] - columns[f"ln_rv_{b}"]
    columns["ln_spread_last"] = (c("spread") * 1e-5 + 1e-3).log()
    columns["imbalance_last"] = c("imbalance")
    for w in QUOTE_WINDOWS:
        need = _need(w)
        columns[f"ln_spread_mean_{w}"] = (c("spread").rolling_mean(w, min_samples=need) * 1e-5 + 1e-3).log()
        columns[f"ln_spread_max_{w}"] = (c("spread").rolling_max(w, min_samples=need) * 1e-5 + 1e-3).log()
        columns[f"abs_imbalance_mean_{w}"] = c("imbalance").rolling_mean(w, min_samples=need).abs()
        columns[f"imbalance_std_{w}"] = c("imbalance").rolling_std(w, min_samples=need, ddof=0)
        columns[f"ln_intensity_{w}"] = (c("updates").rolling_mean(w, min_samples=need) + 0.01).log()
        columns[f"ln_mid_changes_{w}"] = (c("changes").rolling_mean(w, min_samples=need) + 0.01).log()
    columns["intensity_ratio_15_300"] = columns["ln_intensity_15"] - columns["ln_intensity_300"]
    columns["age_s"] = c("age_s")
    columns["microprice_last"] = c("microprice") * 1e-5
    for w in QUOTE_WINDOWS:
        need = _need(w)
        columns[f"spread_above_tick_{w}"] = c("above").rolling_mean(w, min_samples=need)
        columns[f"microprice_mean_{w}"] = c("microprice").rolling_mean(w, min_samples=need) * 1e-5
    for w in SHAPE_WINDOWS:
        need = _need(w)
        variance = c("r2").rolling_mean(w, min_samples=need)
        total = c("r2").rolling_sum(w, min_samples=need)
        warm = variance.is_not_null()
        bipower = pl.when(warm).then(math.pi / 2 * c("pairs").rolling_mean(w - 1, min_samples=1))
        columns[f"ln_bv_{w}"] = (bipower.sqrt() * 1e-9 + 1e-7).log()
        jumps = pl.when(variance > 0).then((1 - bipower / variance).clip(lower_bound=0.0)).otherwise(0.0)
        columns[f"jump_share_{w}"] = pl.when(warm).then(jumps)
        greatest = c("size").rolling_max(w, min_samples=need)
        columns[f"ln_max_abs_ret_{w}"] = (greatest * 1e-9 + 1e-7).log()
        share = pl.when(total > 0).then(c("falls").rolling_sum(w, min_samples=need) / total).otherwise(0.5)
        columns[f"downside_share_{w}"] = pl.when(warm).then(share)
    for w in RANGE_WINDOWS:
        mean = (c("range") ** 2).rolling_mean(w, min_samples=_need(w)) / (4 * math.log(2))
        columns[f"ln_parkinson_{w}"] = (mean.sqrt() * 1e-9 + 1e-7).log()
    for a, b in RANGE_RATIOS:
        columns[f"range_ratio_{a}_{b}"] = columns[f"ln_parkinson_{a}"] - columns[f"ln_parkinson_{b}"]
    return columns


def _polars_time(spec: TimescaleSpec, start_ns: int) -> dict:
    import polars as pl

    bar, longest = pl.col("bar"), _longest_age(spec)
    columns: dict[str, pl.Expr] = {}
    for name, (period_s, offset_s) in _PERIODS.items():
        into = (start_ns + spec.bar_ns * (bar + 1) + offset_s * NS) % (period_s * NS)
        angle = into.cast(pl.Float64) * (2 * math.pi / (period_s * NS))
        columns[f"sin_{name}"], columns[f"cos_{name}"] = angle.sin(), angle.cos()
    since = (bar - pl.when("segment").then("bar").forward_fill() + 1).clip(upper_bound=longest)
    unseen = pl.when(bar >= longest - 1).then(longest)
    columns["ln_segment_age"] = (pl.coalesce(since, unseen) * float(spec.bar_interval_s)).log()
    return columns


def _polars_kernel(values, half_life: int):
    decay, length = 0.5 ** (1 / half_life), 8 * half_life
    infinite = values.ewm_mean(half_life=half_life, adjust=False) / (1 - decay)
    return infinite - decay**length * infinite.shift(length, fill_value=0.0)
