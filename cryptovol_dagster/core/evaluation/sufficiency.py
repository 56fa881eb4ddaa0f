"""Sufficiency of a training span: independent spikes, memory, days, and the most complex model they support.

The number of rows means little, because neighbours share most of their label. The number of separate spikes
counts, and the number of days. Nothing is decided here: the numbers are reported beside the metrics.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from cryptovol_dagster.core.evaluation.report import Sufficiency
from cryptovol_dagster.core.learning.labels import SIGMA_FLOOR
from cryptovol_dagster.core.metrics.autocorrelation import autocorrelation
from cryptovol_dagster.core.metrics.bootstrap import MIN_POSITIVE_BLOCKS, MIN_POSITIVES, least_block_s
from cryptovol_dagster.core.metrics.events import Market
from cryptovol_dagster.core.specs import DAY_S, NS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cryptovol_dagster.core.learning.dataset import Problem

NONE, SINGLE, HAR, LOGIT, TREES = "none", "single", "har", "logit", "trees"
#: The classes, as a person reads them.
_PLAIN = {SINGLE: "one-feature models", HAR: "HAR", LOGIT: "logistic regression", TREES: "boosted trees"}
#: Columns of the HAR set (Corsi 2009): a ladder of four to six windows.
HAR_FEATURES = 5
#: The autocorrelation is summed up to the lag that is this many times its own sum (Sokal 1997).
_WINDOW_FACTOR = 5


class ModelClass(NamedTuple):
    """A class of models, and what its fit requires.

    Attributes:
        name: one of the constants above.
        about: description of its models.
        features: number of features it reads; None: all.
        spikes_per_feature: least number of separate spikes for each of them.
        days: least number of days observed.
    """

    name: str
    about: str
    features: int | None
    spikes_per_feature: int
    days: float


#: From the simplest to the most complex. For the limits see
#: docs/decisions/evaluation/what-a-span-can-teach.md.
CLASSES = (
    ModelClass(SINGLE, "one volatility and a threshold (persistence, EWMA)", 1, MIN_POSITIVE_BLOCKS, 0.0),
    ModelClass(HAR, "a logistic on a ladder of volatilities (HAR)", HAR_FEATURES, 5, 3.0),
    ModelClass(LOGIT, "a penalised logistic on every feature", None, 2, 7.0),
    ModelClass(TREES, "boosted trees on every feature", None, 2, 30.0),
)


class Memory(NamedTuple):
    """Memory of a series.

    Attributes:
        integrated_s: ``(1 + 2 Σ ρ_k) · bar``: values closer than this share most of their information.
        effective: number of independent values with as much information as all values.
    """

    integrated_s: float
    effective: float


def assess_training(problem: Problem) -> Sufficiency:
    """Assess the training rows of a problem, which models are fitted on.

    Examples:
        >>> from cryptovol_dagster.core.samples import problem
        >>> assess_training(problem()).summary.split("; ")[1]
        'about 0.15 more days for one-feature models'
    """
    train, y = problem.part(problem.split.train)
    return assess(
        train.t_ns,
        y,
        train.sigma,
        train.product,
        bar_ns=train.bar_ns,
        horizon_ns=train.horizon_ns,
        features=train.features.shape[1],
    )


def assess(
    t_ns: NDArray[np.int64],
    y: NDArray[np.bool_],
    sigma: NDArray[np.float64],
    product: NDArray[np.object_],
    *,
    bar_ns: int,
    horizon_ns: int,
    features: int,
) -> Sufficiency:
    """Assess which models rows support, whatever their order; more rows never support less.

    The class depends on counts that only grow with rows: positives, days, and spikes of which any two are
    max(5 H, 30 min) apart. Products at one time count once: they move together. The numbers derived from the
    memory of the series are not used, because a longer record may reveal a longer memory.

    Args:
        t_ns: decision time of each row.
        y: whether it is a spike.
        sigma: forward volatility.
        product: name of its product.
        bar_ns: length of a bar.
        horizon_ns: H.
        features: number of features a model may read.
    """
    order = np.argsort(t_ns, kind="stable")
    t_ns, y, sigma, product = t_ns[order], y[order], sigma[order], product[order]
    market = Market(product, t_ns, y, np.zeros(y.size, dtype=bool), bar_ns, horizon_ns)
    times = np.unique(t_ns)
    spike_times = np.unique(t_ns[y])
    least_s = least_block_s(horizon_ns / NS)
    grids = list(_grids(t_ns, product, bar_ns, y.astype(np.float64), np.log(np.maximum(sigma, SIGMA_FLOOR))))
    of_y = _memory([spikes for spikes, _ in grids], times.size, bar_ns)
    of_sigma = _memory([volatility for _, volatility in grids], times.size, bar_ns)
    block_s = max(least_s, 2 * of_y.integrated_s)
    spikes_apart = count_apart(spike_times, least_s)
    days = times.size * bar_ns / NS / DAY_S
    reach = _reach(spikes_apart, int(y.sum()), days, features)
    return Sufficiency(
        supports=reach.supports,
        rows=int(t_ns.size),
        products=tuple(sorted(map(str, pd.unique(product)))),
        positives=int(y.sum()),
        days=days,
        events=len(market.events()),
        features=features,
        spikes_apart=spikes_apart,
        spikes_per_feature=spikes_apart / features if features else 0.0,
        least_block_s=least_s,
        memory_s=of_y.integrated_s,
        block_s=block_s,
        blocks=count_apart(times, block_s),
        positive_blocks=count_apart(spike_times, block_s),
        effective_positives=of_y.effective * spike_times.size / max(times.size, 1),
        effective_rows=of_sigma.effective,
        missing=reach.missing,
        next_class=reach.next_class,
        more_days=reach.more_days,
        summary=_summary(spikes_apart, days, reach),
    )


class _Reach(NamedTuple):
    """The richest class that is supported, and what the next one lacks (as in `Sufficiency`)."""

    supports: str
    missing: tuple[str, ...]
    next_class: str | None
    more_days: float | None


def _reach(spikes_apart: int, positives: int, days: float, features: int) -> _Reach:
    supported = NONE
    # A class requires those before it, so the first that lacks something is the next one.
    for kind in CLASSES:
        if lacks := _lacking(kind, spikes_apart, positives, days, features):
            waits = [lack.more_days for lack in lacks]
            known = [wait for wait in waits if wait is not None]
            more_days = max(known) if len(known) == len(waits) else None
            return _Reach(supported, tuple(lack.sentence for lack in lacks), kind.name, more_days)
        supported = kind.name
    return _Reach(supported, (), None, None)


def _summary(spikes_apart: int, days: float, reach: _Reach) -> str:
    """Return one line: the class that a span supports, and when it supports the next one."""
    enough = f"enough for {_PLAIN[reach.supports]}" if reach.supports in _PLAIN else "too few for any model"
    counted = f"{spikes_apart} independent spikes in {days:.2g} days, {enough}"
    if reach.next_class is None:
        return counted
    wait = "time not known yet" if reach.more_days is None else f"about {reach.more_days:.2g} more days"
    return f"{counted}; {wait} for {_PLAIN[reach.next_class]}"


def count_apart(times_ns: NDArray[np.int64], apart_s: float) -> int:
    """Return the greatest number of times of which any two are `apart_s` or more apart.

    Taking the first time, and then always the first that is far enough, gives the greatest number. Unlike
    blocks of a grid, it depends on no origin and never falls when times are added.

    Args:
        times_ns: ascending.
        apart_s: least distance.

    Examples:
        >>> count_apart(1_000_000_000 * np.array([0, 10, 40, 45, 80]), apart_s=30)
        3
    """
    count = at = 0
    while at < times_ns.size:
        count += 1
        at = int(np.searchsorted(times_ns, times_ns[at] + int(apart_s * NS)))
    return count


class _Lack(NamedTuple):
    sentence: str
    more_days: float | None


def _lacking(kind: ModelClass, spikes: int, positives: int, days: float, features: int) -> list[_Lack]:
    """Return what a class lacks, in the order of its requirements."""
    reads = features if kind.features is None else kind.features
    asked = (
        ("rows that are spikes", positives, MIN_POSITIVES),
        (
            f"spikes apart ({kind.spikes_per_feature} a feature, {reads} read)",
            spikes,
            _spikes_needed(kind, reads),
        ),
    )
    lacks = [
        _Lack(f"{kind.name}: {needed} {what} are needed, {found} found", _wait(found, needed, days))
        for what, found, needed in asked
        if found < needed
    ]
    if days < kind.days:
        sentence = f"{kind.name}: {kind.days:g} days are needed, {days:.2g} found"
        lacks.append(_Lack(sentence, kind.days - days))
    return lacks


def _spikes_needed(kind: ModelClass, reads: int) -> int:
    """Return the number of spikes a class requires; never fewer than a simpler one with a fixed set."""
    floor = max(one.features * one.spikes_per_feature for one in CLASSES if one.features is not None)
    own = reads * kind.spikes_per_feature
    return own if kind.features is not None else max(own, floor)


def _wait(found: int, needed: int, days: float) -> float | None:
    return (needed - found) / (found / days) if found and days else None


def _grids(
    t_ns: NDArray[np.int64], product: NDArray[np.object_], bar_ns: int, *columns: NDArray[np.float64]
) -> Iterator[NDArray[np.float64]]:
    """Yield each product's columns on every bar from its first to its last row, NaN where it has none."""
    for name in pd.unique(product):
        own = np.flatnonzero(product == name)
        slot = (t_ns[own] - t_ns[own].min()) // bar_ns
        grids = np.full((len(columns), int(slot.max()) + 1), np.nan)
        for grid, column in zip(grids, columns, strict=True):
            grid[slot] = column[own]
        yield grids


def _memory(series: list[NDArray[np.float64]], times: int, bar_ns: int) -> Memory:
    """Integrate the autocorrelation, averaged over the products by their rows; at least one bar.

    ``1 + 2 Σ_k ρ_k``, with Sokal's window (Monte Carlo Methods in Statistical Mechanics, 1997).
    """
    bars = 1.0
    # A product recorded since yesterday has no information on a memory of weeks.
    longest = max((values.size for values in series), default=0)
    found = [autocorrelation(values, values.size // 4) for values in series if 2 * values.size >= longest]
    found = [one for one in found if one.lags.size and np.isfinite(one.correlation).all()]
    if found:
        lags = min(one.lags.size for one in found)
        weights = [one.observations for one in found]
        rho = np.average([one.correlation[:lags] for one in found], axis=0, weights=weights)
        sums = 1 + 2 * np.cumsum(rho)
        # Beyond a few times the memory itself there is only noise to add.
        enough = np.flatnonzero(np.arange(1, lags + 1) >= _WINDOW_FACTOR * sums)
        bars = max(1.0, float(sums[enough[0] if enough.size else -1]))
    return Memory(bars * bar_ns / NS, times / bars)
