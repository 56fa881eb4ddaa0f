"""The statistics of a promotion: when to look at a challenger, at which level, and what the look says.

A challenger is measured against the champion on rows that neither has learned from. The same pair is looked
at again as its hold-out grows, so the chance of being fooled is budgeted over time: the right to be wrong
accrues with days of fresh hold-out, each look spends what accrued since the one before, and no more than
`GateSpec.error_rate` is ever spent within `GateSpec.error_window_s`. By the union bound the chance that a
model which is no better is promoted in such a window is at most that rate, whatever the dependence between
looks and between challengers.

Method: spending functions, Lan & DeMets 1983 (Biometrika 70); block bootstrap, Politis & Romano 1994. The
rates that come of it are measured by ``benchmarks/gate.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cryptovol_dagster.core.metrics import ranking as metrics
from cryptovol_dagster.core.metrics.bootstrap import BlockBootstrap, count_positive_blocks
from cryptovol_dagster.core.metrics.scored_rows import HoldOut
from cryptovol_dagster.core.specs import NS, GateSpec

if TYPE_CHECKING:
    pass

#: A hold-out ends with the last row there is, a little before or after the hour or day is full.
_NEARLY = 0.99


@dataclass(frozen=True)
class Look:
    """A look that was taken.

    Attributes:
        at_ns: end of the hold-out.
        level: what was spent: the chance that it would promote a model that is no better.
    """

    at_ns: int
    level: float


def is_look_due(start_ns: int, looked_until_ns: int | None, end_ns: int, gate: GateSpec) -> bool:
    """Tell whether a hold-out has grown enough since the last look at its pair.

    Args:
        start_ns: of the hold-out.
        looked_until_ns: its end at the last look; None before the first.
        end_ns: its end now.
        gate: the lengths.
    """
    length_s = (end_ns - start_ns) / NS
    if looked_until_ns is None:
        return length_s >= _NEARLY * gate.first_look_s
    if end_ns <= looked_until_ns:
        return False
    return length_s >= _NEARLY * min(gate.growth * (looked_until_ns - start_ns) / NS, gate.measured_for_s)


def is_last_look(start_ns: int, end_ns: int, gate: GateSpec) -> bool:
    """Tell whether a hold-out is as long as any gets."""
    return (end_ns - start_ns) / NS >= _NEARLY * gate.measured_for_s


def level_of_look(
    start_ns: int, looked_until_ns: int | None, end_ns: int, spent: Sequence[Look], gate: GateSpec
) -> float:
    """Give the level that a look may spend: what accrued with the rows it is the first to see.

    Args:
        start_ns: of the hold-out.
        looked_until_ns: its end at the last look; None before the first.
        end_ns: its end now.
        spent: earlier looks, of any pair.
        gate: rate and window.

    Returns:
        At least 0; at 0 the budget of the window is used up.
    """
    fresh_s = (end_ns - (looked_until_ns or start_ns)) / NS
    accrued = gate.error_rate * fresh_s / gate.error_window_s
    left = gate.error_rate - sum(look.level for look in remembered(spent, end_ns, gate))
    return max(min(accrued, left, gate.most_per_look), 0.0)


def remembered(spent: Sequence[Look], now_ns: int, gate: GateSpec) -> tuple[Look, ...]:
    """Give the looks that still count against the budget."""
    return tuple(look for look in spent if look.at_ns > now_ns - gate.error_window_s * NS)


@dataclass(frozen=True)
class Difference:
    """Average precision of one model minus that of another, on the same rows and resamples.

    Attributes:
        estimate: on the rows as they are.
        low: lower bound at the look's level, one-sided.
        high: upper bound at `GateSpec.reject_level`, one-sided.
        standard_error: of the estimate, by the block bootstrap.
        level: of `low`.
    """

    estimate: float
    low: float
    high: float
    standard_error: float
    level: float


def paired_difference(
    rows: HoldOut, model: str, other: str, *, level: float, block_s: float, gate: GateSpec
) -> Difference:
    """Compare two models by average precision, with one-sided bounds.

    The bounds are ``estimate ∓ t · SE``: SE over paired block-bootstrap resamples, t the quantile of
    Student's distribution with one degree of freedom less than there are blocks with a positive. A percentile
    of the resamples would be too narrow: with a dozen blocks the bootstrap has no tails at a level of 1/600.

    Args:
        rows: scored by both; its data suffice.
        model: name among its scores.
        other: the other name.
        level: one-sided level of the lower bound, above 0.
        block_s: length of a block.
        gate: resamples, seed, level of the upper bound.
    """
    from scipy.stats import t

    bootstrap = BlockBootstrap(rows.t_ns, rows.bar_ns, block_s, gate.resamples, gate.seed)
    resampled = bootstrap.average_precisions(rows.y, {name: rows.scores[name] for name in (model, other)})
    error = float(np.nanstd(resampled[model] - resampled[other], ddof=1))
    estimate = metrics.average_precision(rows.y, rows.scores[model]) - metrics.average_precision(
        rows.y, rows.scores[other]
    )
    freedom = max(count_positive_blocks(rows.t_ns, rows.y, block_s) - 1, 1)
    return Difference(
        estimate=float(estimate),
        low=float(estimate - t.isf(level, freedom) * error),
        high=float(estimate + t.isf(gate.reject_level, freedom) * error),
        standard_error=error,
        level=level,
    )
