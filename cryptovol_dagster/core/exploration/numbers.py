"""Descriptive statistics of new data: shares, memory, relations to the label.

Belongs here: numbers that describe. Does not belong here: anything that a model, a label or a decision
depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cryptovol_dagster.core.learning.dataset import Dataset, Problem
from cryptovol_dagster.core.learning.errors import DegenerateThreshold
from cryptovol_dagster.core.learning.labels import is_spike, spike_thresholds
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.metrics.events import Market
from cryptovol_dagster.core.metrics.ranking import roc_auc
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.units import BPS

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Masks of `BarGrid` for known values; every other mask marks a fault.
_KNOWN_MASKS = frozenset({"ret_ok", "has_quote", "has_spread", "has_imbalance", "has_trades", "has_volume"})


def coverage(bars: BarGrid) -> pd.DataFrame:
    """Count the bars and messages of each product, and the share of bars with each fault.

    Returns:
        One row per product: `bars`, `messages`, `no_message` (share of bars, as all that follow),
        `zero_return` (of the returns known), and the share of every mask of the grid that marks a fault.

    Examples:
        >>> from cryptovol_dagster.core.samples import bars
        >>> coverage(bars())[["bars", "messages", "no_message"]].values.tolist()
        [[3600.0, 10800.0, 0.0], [3600.0, 10800.0, 0.0]]
    """
    faults = {
        name: column.mean(axis=1)
        for name, column in bars.columns().items()
        if column.dtype == np.bool_ and name not in _KNOWN_MASKS
    }
    known = bars.ret_ok.sum(axis=1)
    zeros = (bars.ret_ok & (bars.ret_nano == 0)).sum(axis=1)
    columns = {
        "bars": np.full(len(bars.products), bars.n_bars),
        "messages": bars.n_updates.sum(axis=1),
        "no_message": (bars.n_updates == 0).mean(axis=1),
        "zero_return": np.divide(zeros, known, out=np.full(known.shape, np.nan), where=known > 0),
        **faults,
    }
    return pd.DataFrame(columns, index=pd.Index(bars.products, name="product"))


def log_returns(bars: BarGrid, row: int) -> NDArray[np.float64]:
    """Return one product's log returns on the bars' grid; NaN where unknown.

    Examples:
        >>> from cryptovol_dagster.core.samples import bars
        >>> log_returns(bars(), 0)[1:4].round(7)
        array([2.64e-05, 6.29e-05, 5.83e-05])
    """
    return np.where(bars.ret_ok[row], bars.ret_nano[row] * 1e-9, np.nan)


def on_grid(dataset: Dataset, column: NDArray[np.float64], product: str) -> NDArray[np.float64]:
    """Return one product's values on every bar from its first row to its last; NaN where there is no row.

    Args:
        dataset: product and time of each row.
        column: one value per row of the dataset.
        product: name of the product; it must have rows.
    """
    own = dataset.product == product
    bar = (dataset.t_ns[own] - dataset.t_ns[own][0]) // dataset.bar_ns
    values = np.full(int(bar[-1]) + 1, np.nan)
    values[bar] = column[own]
    return values


def threshold_choices(problem: Problem, spec: TimescaleSpec, quantiles: Sequence[float]) -> pd.DataFrame:
    """Compute τ, positives and episodes for other quantiles of the training rows.

    Args:
        problem: rows and split; its own thresholds are not used.
        spec: the label's parameters other than the quantile.
        quantiles: of σ over the training rows, one τ each.

    Returns:
        One row per (product, quantile): `tau_bps`, `degenerate` (τ separates nothing), and for `train` and
        `test` the base rate, the positives and the episodes (runs of positives; gaps of at most H bridged).
    """
    train, _ = problem.part(problem.split.train)
    test, _ = problem.part(problem.split.test)
    rows = []
    for product in sorted(problem.thresholds):
        parts = {
            name: part.rows(part.product == product) for name, part in (("train", train), ("test", test))
        }
        for quantile in quantiles:
            tau = float(np.quantile(parts["train"].sigma, quantile))
            row = {"product": product, "quantile": quantile, "tau_bps": tau * BPS}
            row["degenerate"] = not _separates(parts["train"], replace(spec, quantile=quantile))
            for name, part in parts.items():
                y = is_spike(part.sigma, part.product, {product: tau})
                row[f"{name}_base_rate"] = float(y.mean()) if y.size else float("nan")
                row[f"{name}_positives"] = int(y.sum())
                row[f"{name}_episodes"] = len(_market(part, y).events())
            rows.append(row)
    return pd.DataFrame(rows).set_index(["product", "quantile"])


def label_relations(dataset: Dataset, y: NDArray[np.bool_]) -> pd.DataFrame:
    """Relate each feature to the label, within each product, then averaged by its rows.

    Args:
        dataset: training rows only: a feature chosen by its relation on test rows has seen the answer.
        y: whether each row is a spike.

    Returns:
        One row per feature, the strongest first: `sigma` (Spearman's rank correlation with σ of the next H),
        `first_half` and `second_half` (the same in the halves of the span; one that changes its sign is
        noise), `spike` (rank-biserial correlation with y, ``2·AUC − 1``). NaN where a side does not vary.
    """
    middle = (int(dataset.t_ns.min()) + int(dataset.t_ns.max())) // 2
    halves = {"first_half": dataset.t_ns <= middle, "second_half": dataset.t_ns > middle}
    columns = {
        "sigma": _rank_correlations(dataset),
        **{name: _rank_correlations(dataset.rows(mask)) for name, mask in halves.items()},
        "spike": _by_product(dataset, lambda own: _rank_biserial(dataset, y, own)),
    }
    frame = pd.DataFrame(columns, index=pd.Index(dataset.features.columns, name="feature"))
    return frame.sort_values("sigma", key=np.abs, ascending=False, na_position="last")


def spike_rate_by_bucket(
    values: NDArray[np.float64], y: NDArray[np.bool_], buckets: int = 10
) -> pd.DataFrame:
    """Group one product's rows into buckets of about equal size by a feature, and count their spikes.

    Equal values stay together, so a feature of few values has fewer buckets.

    Returns:
        One row per bucket, lowest values first: `low`, `high` (smallest and largest value), `rows`, `spikes`,
        `spike_rate`.

    Examples:
        >>> values, y = np.arange(10.0), np.arange(10) >= 8
        >>> found = spike_rate_by_bucket(values, y, buckets=2)
        >>> found[["low", "high", "spikes", "spike_rate"]].values.tolist()
        [[0.0, 4.0, 0.0, 0.0], [5.0, 9.0, 2.0, 0.4]]
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, buckets + 1)[1:-1]))
    bucket = np.searchsorted(edges, values, side="left")
    grouped = pd.DataFrame({"value": values, "y": y}).groupby(bucket)
    return pd.DataFrame(
        {
            "low": grouped["value"].min(),
            "high": grouped["value"].max(),
            "rows": grouped.size(),
            "spikes": grouped["y"].sum(),
            "spike_rate": grouped["y"].mean(),
        }
    ).reset_index(drop=True)


def _separates(train: Dataset, spec: TimescaleSpec) -> bool:
    try:
        spike_thresholds(train.sigma, train.product, spec, t_ns=train.t_ns)
    except DegenerateThreshold:
        return False
    return True


def _market(part: Dataset, y: NDArray[np.bool_]) -> Market:
    return Market(
        product=part.product,
        t_ns=part.t_ns,
        y=y,
        visible=np.zeros(len(part), dtype=bool),
        bar_ns=part.bar_ns,
        horizon_ns=part.horizon_ns,
    )


def _by_product(
    dataset: Dataset, measure: Callable[[NDArray[np.bool_]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Average a measure of every feature over the products, weighted by rows; unknown where one is."""
    masks = [dataset.product == product for product in dataset.products]
    parts = np.array([measure(own) for own in masks])
    return np.average(parts, axis=0, weights=[own.sum() for own in masks])


def _rank_correlations(dataset: Dataset) -> NDArray[np.float64]:
    def of(own: NDArray[np.bool_]) -> NDArray[np.float64]:
        ranks = dataset.features.loc[own].rank()
        sigma = pd.Series(dataset.sigma[own], index=ranks.index).rank()
        with np.errstate(invalid="ignore"):  # 0 / 0 of a constant is the promised NaN
            return ranks.corrwith(sigma).to_numpy()

    return _by_product(dataset, of)


def _rank_biserial(dataset: Dataset, y: NDArray[np.bool_], own: NDArray[np.bool_]) -> NDArray[np.float64]:
    columns = (column.to_numpy()[own] for _, column in dataset.features.items())
    return np.array([2 * roc_auc(y[own], values) - 1 for values in columns])
