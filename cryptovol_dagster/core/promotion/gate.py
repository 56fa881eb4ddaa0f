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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cryptovol_dagster.core.metrics import ranking as metrics
from cryptovol_dagster.core.metrics.ranking import BlockBootstrap
from cryptovol_dagster.core.specs import NS, GateSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

DAY_S = 86_400
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
class HoldOut:
    """The same rows, labels and times, scored by several models.

    Attributes:
        t_ns: decision time of each row, in order.
        bar_ns: distance of neighbouring times.
        y: whether the row is a spike.
        scores: P(spike) of each row, by whatever names the models.
    """

    t_ns: NDArray[np.int64]
    bar_ns: int
    y: NDArray[np.bool_]
    scores: Mapping[str, NDArray[np.float64]]

    def average_precision(self, name: str) -> float | None:
        """Average precision of a model; None where the rows hold one class only."""
        if not self.y.any() or self.y.all():
            return None
        return metrics.average_precision(self.y, self.scores[name])

    def brier(self, name: str) -> float | None:
        """Brier score of a model; None without rows."""
        return metrics.brier(self.y, self.scores[name]) if self.y.size else None

    def block_s(self, horizon_s: float, gate: GateSpec) -> float:
        """Length of the blocks that count as independent: a twelfth of the span, two hours to a day.

        Violent days come in runs, so what is independent is long: with blocks of two hours throughout, the
        standard error of several days comes out a third too small. Few long blocks and Student's quantile
        err on the safe side.
        """
        if not self.t_ns.size:
            return float(gate.least_block_s)
        span_s = (int(self.t_ns[-1]) - int(self.t_ns[0]) + self.bar_ns) / NS
        shared = min(span_s / gate.blocks, DAY_S)
        return max(metrics.block_length_s(horizon_s, span_s), shared, gate.least_block_s)

    def why_insufficient(self, block_s: float, gate: GateSpec) -> list[str]:
        """Say what is lacking for a comparison, from the labels alone: nothing is spent by asking."""
        positives = int(self.y.sum())
        blocks = metrics.count_positive_blocks(self.t_ns, self.y, block_s)
        reasons = []
        if positives < gate.min_positives:
            reasons.append(f"{positives} positives in the hold-out, {gate.min_positives} are needed")
        elif positives == self.y.size:
            reasons.append(f"the {positives} rows of the hold-out are all positives")
        if blocks < gate.min_positive_blocks:
            reasons.append(
                f"{blocks} independent blocks of {block_s / 3_600:g} h with a positive in the hold-out, "
                f"{gate.min_positive_blocks} are needed"
            )
        return reasons


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
    freedom = max(metrics.count_positive_blocks(rows.t_ns, rows.y, block_s) - 1, 1)
    return Difference(
        estimate=float(estimate),
        low=float(estimate - t.isf(level, freedom) * error),
        high=float(estimate + t.isf(gate.reject_level, freedom) * error),
        standard_error=error,
        level=level,
    )
