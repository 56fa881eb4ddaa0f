"""Pictures of new data as PNG bytes; drawn by `notebooks/eda.ipynb`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cryptovol_dagster.core.exploration.numbers import log_returns, on_grid, spike_rate_by_bucket
from cryptovol_dagster.core.market.fixed_point import NANO
from cryptovol_dagster.core.metrics.autocorrelation import Autocorrelation, autocorrelation
from cryptovol_dagster.core.pictures.canvas import CYCLE, canvas, clock, log_bins, png, time_axis, title
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.units import BPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.typing import ColorType
    from numpy.typing import NDArray

    from cryptovol_dagster.core.leaks.ladder import Rung
    from cryptovol_dagster.core.learning.dataset import Dataset, Problem
    from cryptovol_dagster.core.market.bars import BarGrid

#: Longest lag of |r| and r², in bars.
_MAX_LAG_BARS = 300
#: Longest lag of ln RV, in windows.
_MAX_LAG_WINDOWS = 60
#: Ages below this are drawn as this.
_LEAST_AGE_S = 0.01
#: Half the length of the stretch shown around the most volatile moment.
_AROUND_BARS = 900


def plot_quotes(bars: BarGrid) -> bytes:
    """Draw the distributions of returns, spreads and quote ages, by product.

    Examples:
        >>> from cryptovol_dagster.core.samples import bars
        >>> plot_quotes(bars())[:4]
        b'\x89PNG'
    """
    figure, (returns, spreads, ages) = canvas(9, 9.5, rows=3)
    moves = [log_returns(bars, row) * BPS for row in range(len(bars.products))]
    known = np.concatenate([move[np.isfinite(move)] for move in moves])
    edge = max(float(np.quantile(np.abs(known), 0.999)) if known.size else 1.0, 1e-3)
    spread_bps = bars.spread_nano / NANO * BPS
    age_bins = log_bins(np.maximum(bars.age_s[bars.has_quote], _LEAST_AGE_S))
    for row, (product, colour) in enumerate(zip(bars.products, _cycle(len(bars.products)), strict=False)):
        move = moves[row][np.isfinite(moves[row])]
        zeros = np.mean(move == 0) if move.size else np.nan
        _density(
            returns,
            move[move != 0],
            np.linspace(-edge, edge, 121),
            colour,
            f"{product}: {zeros:.1%} exactly 0",
        )
        quoted = bars.has_quote[row]
        _density(spreads, spread_bps[row][quoted], log_bins(spread_bps[bars.has_quote]), colour, product)
        age = bars.age_s[row][quoted]
        _density(ages, age, age_bins, colour, f"{product}: {_quantiles(age)}")
    returns.set(
        yscale="log",
        ylabel="% of moves (log)",
        xlabel="log return of a bar, bps; without zeros, values beyond the axis are counted at its edges",
    )
    spreads.set(xscale="log", ylabel="% of bars", xlabel="spread at the bar's end, bps (log)")
    ages.set(xscale="log", ylabel="% of bars", xlabel="age of the quote at the bar's end, s (log)")
    for axes in (returns, spreads, ages):
        axes.legend(fontsize=8)
    title(returns, "Returns, spreads and quote ages of bars", _of_bars(bars))
    return png(figure)


def plot_volatility_by_window(dataset: Dataset, windows: Sequence[int]) -> bytes:
    """Draw the distribution of ln RV for each window, by product."""
    from matplotlib import colormaps

    columns = {window: np.exp(dataset.features[f"ln_rv_{window}"].to_numpy()) * BPS for window in windows}
    bins = log_bins(np.concatenate(list(columns.values())), 90)
    products = dataset.products
    figure, panels = canvas(9, 2.6 * len(products) + 0.8, rows=len(products), sharex=True)
    for axes, product in zip(np.atleast_1d(panels), products, strict=True):
        own = dataset.product == product
        for window, shade in zip(windows, np.linspace(0.9, 0.1, len(windows)), strict=True):
            _density(axes, columns[window][own], bins, colormaps["viridis"](shade), f"{window} bars")
        axes.set(xscale="log", ylabel=f"{product}\n% of rows")
    first = np.atleast_1d(panels)[0]
    first.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), title="window")
    np.atleast_1d(panels)[-1].set(xlabel="realised volatility of the window, bps per bar (log axis: ln RV)")
    title(first, "Realised volatility by window", _of_rows(dataset))
    return png(figure)


def plot_memory(bars: BarGrid, dataset: Dataset, window: int, block_s: float | None = None) -> bytes:
    """Draw the autocorrelation of |r|, of r² and of ln RV, with the band of a series without memory.

    Args:
        bars: of the returns.
        dataset: holds `ln_rv_<window>`.
        window: its length in bars; every `window`-th value is used, since overlapping windows are similar
            whatever the market does.
        block_s: length of bootstrap blocks, drawn beside ln RV. Intervals treat values that far apart as
            independent.
    """
    figure, panels = canvas(9, 9, rows=3)
    bar_s, step_s = bars.bar_ns / NS, window * dataset.bar_ns / NS
    column = dataset.features[f"ln_rv_{window}"].to_numpy()
    for row, (product, colour) in enumerate(zip(bars.products, _cycle(len(bars.products)), strict=False)):
        move = log_returns(bars, row)
        _memory(panels[0], autocorrelation(np.abs(move), _MAX_LAG_BARS), bar_s, colour, product)
        _memory(panels[1], autocorrelation(move**2, _MAX_LAG_BARS), bar_s, colour, product)
        if product in dataset.products:
            sampled = on_grid(dataset, column, product)[::window]
            _memory(panels[2], autocorrelation(sampled, _MAX_LAG_WINDOWS), step_s, colour, product)
    if block_s is not None:
        panels[2].axvline(block_s, color="black", linestyle="--", label=f"block of {block_s:g} s")
    names = ("|r| of a bar", "r² of a bar", f"ln RV of {window} bars, every {window}-th")
    for axes, name in zip(panels, names, strict=True):
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(ylabel=f"autocorrelation of\n{name}", xlabel="lag, s", xlim=(0, None))
        axes.legend(fontsize=8)
    title(panels[0], "How long volatility remembers (shaded: no memory)", _of_bars(bars))
    return png(figure)


def plot_clustering(bars: BarGrid, dataset: Dataset) -> bytes:
    """Draw mid, |r| and the volatility of the last H bars around the most volatile moment of the span."""
    wildest = int(np.nanargmax(np.where(np.isnan(dataset.trailing_sigma), -1.0, dataset.trailing_sigma)))
    product, at_ns = str(dataset.product[wildest]), int(dataset.t_ns[wildest])
    start_ns = max(bars.start_ns, at_ns - _AROUND_BARS * bars.bar_ns)
    part = bars.slice(start_ns, min(bars.end_ns, at_ns + _AROUND_BARS * bars.bar_ns))
    row = part.products.index(product)
    figure, (mid, moves, sigma) = canvas(10.5, 7.5, rows=3, sharex=True)
    ends = pd.to_datetime(part.bar_starts_ns + part.bar_ns, unit="ns", utc=True)
    mid.plot(ends, part.close[row], color="black", linewidth=1)
    mid.set(ylabel=f"mid, {product.partition('-')[2]}")
    moves.vlines(ends, 0, np.abs(log_returns(part, row)) * BPS, color="#0072B2", linewidth=0.6)
    moves.set(ylabel="|r| of a bar, bps", ylim=(0, None))
    trailing = on_grid(dataset, dataset.trailing_sigma, product) * BPS
    first_ns = int(dataset.t_ns[dataset.product == product][0])
    times = pd.to_datetime(first_ns + dataset.bar_ns * np.arange(trailing.size), unit="ns", utc=True)
    shown = (times >= ends[0]) & (times <= ends[-1])
    horizon_s = dataset.horizon_ns / NS
    sigma.plot(times[shown], trailing[shown], color="#D55E00", linewidth=1)
    sigma.set(ylabel=f"volatility of the\nlast {horizon_s:g} s, bps per bar", ylim=(0, None))
    sigma.set(xlabel=f"UTC, {ends[0]:%Y-%m-%d}")
    time_axis(sigma)
    minutes = (ends[-1] - ends[0]).total_seconds() / 60
    title(
        mid, f"The most volatile moment of the span: {product}", f"{minutes:.0f} min of {part.n_bars:,} bars"
    )
    return png(figure)


def plot_threshold(problem: Problem) -> bytes:
    """Draw σ of the next H by percentile for each part of the split, with τ and each part's base rate.

    The rows to the right of the crossing of a part's curve with τ are its spikes.

    Examples:
        >>> from cryptovol_dagster.core.samples import problem
        >>> plot_threshold(problem())[1:4]
        b'PNG'
    """
    products = sorted(problem.thresholds)
    figure, panels = canvas(9, 3.4 * len(products) + 0.8, rows=len(products), sharex=True)
    split = problem.split
    spans = (("training", split.train), ("validation", split.validation), ("test", split.test))
    for axes, product in zip(np.atleast_1d(panels), products, strict=True):
        tau = problem.thresholds[product]
        for (name, span), colour in zip(spans, CYCLE, strict=False):
            part, y = problem.part(span)
            own = part.product == product
            if own.any():
                sigma = np.sort(part.sigma[own]) * BPS
                share = 100 * (np.arange(sigma.size) + 0.5) / sigma.size
                label = f"{name}: {own.sum():,} rows, base rate {y[own].mean():.3f}"
                axes.plot(share, np.maximum(sigma, 1e-3), color=colour, label=label)
        axes.axhline(tau * BPS, color="black", linestyle=":", label=f"τ = {tau * BPS:.3g} bps")
        axes.set(yscale="log", ylabel=f"{product}\nσ of the next {problem.dataset.horizon_ns / NS:g} s, bps")
        _plain_log(axes.yaxis)
        axes.legend(fontsize=8, loc="upper left")
    np.atleast_1d(panels)[-1].set(xlabel="percentile: % of the part's rows at or below", xlim=(0, 100))
    title(
        np.atleast_1d(panels)[0],
        "Percentiles of the volatility to be predicted, and the threshold τ",
        f"training {clock(split.train.start_ns)} – {clock(split.train.end_ns)}, "
        f"test {clock(split.test.start_ns)} – {clock(split.test.end_ns)} UTC",
    )
    return png(figure)


def plot_base_rates(choices: pd.DataFrame) -> bytes:
    """Draw the base rates of training and test for each choice of τ, by product.

    Args:
        choices: of `exploration.threshold_choices`.
    """
    products = list(dict.fromkeys(choices.index.get_level_values("product")))
    figure, panels = canvas(9, 2.6 * len(products) + 0.8, rows=len(products), sharex=True)
    for axes, product in zip(np.atleast_1d(panels), products, strict=True):
        own = choices.loc[product]
        for part, colour in zip(("train", "test"), CYCLE, strict=False):
            rate = own[f"{part}_base_rate"]
            axes.plot(own["tau_bps"], rate, marker="o", markersize=4, color=colour, label=part)
        for quantile, tau, rate in zip(own.index, own["tau_bps"], own["train_base_rate"], strict=True):
            axes.annotate(f"q{100 * quantile:g}", (tau, rate), (3, 5), textcoords="offset points", fontsize=8)
        axes.set(xscale="log", yscale="log", ylabel=f"{product}\nbase rate")
        _plain_log(axes.xaxis)
        _plain_log(axes.yaxis)
        axes.legend(fontsize=8)
    np.atleast_1d(panels)[-1].set(xlabel="τ, bps per bar (log); q: quantile of the training rows")
    title(
        np.atleast_1d(panels)[0],
        "Base rate by threshold",
        "where the two lines differ, the level of volatility has changed since training",
    )
    return png(figure)


def plot_relations(relations: pd.DataFrame, measured_on: str, top: int = 20) -> bytes:
    """Draw the strongest rank correlations with σ of the next H, over all rows and in both halves.

    Args:
        relations: of `exploration.label_relations`.
        measured_on: description of the rows.
        top: number of features.
    """
    shown = relations.head(top).iloc[::-1]
    figure, axes = canvas(9, 1.6 + 0.28 * len(shown))
    axes.barh(shown.index, shown["sigma"], color="#56B4E9", label="all training rows")
    for column, marker, name in (("first_half", "<", "first half"), ("second_half", ">", "second half")):
        axes.plot(shown[column], shown.index, marker, color="black", markersize=4, label=name)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="Spearman's rank correlation with σ of the next H, within a product")
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.02)
    figure.legend(loc="outside lower center", fontsize=8, ncols=3)
    title(axes, "Features and the volatility that follows", measured_on)
    return png(figure)


def plot_spike_rates(dataset: Dataset, y: NDArray[np.bool_], features: Sequence[str]) -> bytes:
    """Draw the share of spikes in ten buckets of each feature, by product, with the base rate.

    Args:
        dataset: training rows.
        y: whether each is a spike.
        features: at most a handful.
    """
    rows = -(-len(features) // 2)
    figure, panels = canvas(
        9.5, 2.7 * rows + 0.8, rows=rows, columns=2, sharex=True, sharey=True, squeeze=False
    )
    for axes, feature in zip(panels.flat, features, strict=False):
        values = dataset.features[feature].to_numpy()
        for product, colour in zip(dataset.products, _cycle(len(dataset.products)), strict=False):
            own = dataset.product == product
            table = spike_rate_by_bucket(values[own], y[own])
            middle = 100 * (table["rows"].cumsum() - table["rows"] / 2) / table["rows"].sum()
            axes.plot(middle, table["spike_rate"], marker="o", markersize=4, color=colour, label=product)
        axes.axhline(y.mean(), color="black", linestyle=":", label=f"base rate {y.mean():.3f}")
        axes.text(0.03, 0.9, feature, transform=axes.transAxes, fontsize=9, fontweight="bold")
    for axes in panels.flat[len(features) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set(xlabel="percentile of the feature within its product")
    for axes in panels[:, 0]:
        axes.set(ylabel="share of spikes")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8, ncols=len(labels))
    title(panels.flat[0], "Share of spikes in tenths of the best features", f"training rows: {len(y):,}")
    return png(figure)


def plot_leak_ladder(rungs: Sequence[Rung], measured_on: str) -> bytes:
    """Draw each rung's average precision beside its base rate."""
    figure, axes = canvas(9, 1.6 + 0.6 * len(rungs))
    for place, rung in enumerate(reversed(rungs)):
        axes.barh(place, rung.average_precision, color="#D55E00" if rung.fault else "#009E73", height=0.6)
        axes.plot([rung.base_rate] * 2, [place - 0.4, place + 0.4], color="black", linewidth=2)
        text = f" {rung.average_precision:.3f}  (base rate {rung.base_rate:.3f})"
        axes.text(rung.average_precision, place, text, va="center", fontsize=9)
    names = [f"{rung.name}\n{rung.fault}" if rung.fault else rung.name for rung in reversed(rungs)]
    axes.set_yticks(range(len(rungs)), names, fontsize=8)
    axes.set(xlabel="average precision (black: base rate, what no skill reaches)", xlim=(0, 1.45))
    axes.margins(y=0.01)
    axes.set_xticks(np.linspace(0, 1, 6))
    title(axes, "The leak ladder: the same bars, one step replaced", measured_on)
    return png(figure)


def _plain_log(axis: Axis) -> None:
    """Mark 1, 2, 5, 10 … on a logarithmic axis, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _memory(axes: Axes, found: Autocorrelation, step_s: float, colour: str, product: str) -> None:
    label = f"{product}: {found.observations:,} values"
    axes.plot(found.lags * step_s, found.correlation, color=colour, linewidth=1, label=label)
    axes.axhspan(-found.band, found.band, color=colour, alpha=0.15, linewidth=0)


def _density(
    axes: Axes, values: NDArray[np.float64], bins: NDArray[np.float64], colour: ColorType, label: str
) -> None:
    """Draw the share of values in each bin; values outside are counted in the outermost bins."""
    bounded = np.clip(values, bins[0], bins[-1])
    weights = np.full(values.size, 100 / max(values.size, 1))
    axes.hist(bounded, bins=bins.tolist(), weights=weights, histtype="step", color=colour, label=label)


def _quantiles(values: NDArray[np.float64]) -> str:
    if not values.size:
        return "none known"
    middle, high = np.quantile(values, [0.5, 0.99])
    return f"median {middle:.2f} s, 99 % {high:.2f} s"


def _cycle(count: int) -> list[str]:
    return [CYCLE[k % len(CYCLE)] for k in range(count)]


def _of_bars(bars: BarGrid) -> str:
    span = f"{clock(bars.start_ns)} – {clock(bars.end_ns)} UTC"
    return f"{span}, {bars.n_bars:,} bars of {bars.bar_ns / NS:g} s, {len(bars.products)} products"


def _of_rows(dataset: Dataset) -> str:
    span = f"{clock(int(dataset.t_ns.min()))} – {clock(int(dataset.t_ns.max()))} UTC"
    return f"{span}, {len(dataset):,} rows with features and label"
