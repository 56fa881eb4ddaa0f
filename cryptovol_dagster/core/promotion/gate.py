"""The statistics of a promotion: when a challenger is analyzed, at which level, and with which result.

A challenger is compared with the champion on rows that neither has learned from: the hold-out. The same pair
is analyzed again as its hold-out grows, so the chance of a false promotion has a budget over time. The budget
accrues with days of fresh hold-out, and each interim analysis spends what accrued since the one before. No
more than `GateSpec.error_rate` is ever spent within `GateSpec.error_window_s`. By the union bound this rate
also limits the chance that a model which is no better is promoted in such a window. It does so whatever the
dependence between analyses and between challengers.

Method: spending functions, Lan & DeMets 1983 (Biometrika 70); block bootstrap, Politis & Romano 1994.
``benchmarks/gate.py`` measures the resulting rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cryptovol_dagster.core.metrics.bootstrap import BlockBootstrap, block_length_s, count_positive_blocks
from cryptovol_dagster.core.metrics.ranking import average_precision
from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.specs import DAY_S, NS, GateSpec

#: A hold-out ends with the last row there is, a little before or after the hour or day is full.
_NEARLY = 0.99


@dataclass(frozen=True)
class InterimAnalysis:
    """An interim analysis that has spent a part of the error budget.

    Attributes:
        at_ns: end of the hold-out.
        level: the spent part of the budget: the probability of promoting a model that is no better.
    """

    at_ns: int
    level: float


def is_analysis_due(start_ns: int, analyzed_until_ns: int | None, end_ns: int, gate: GateSpec) -> bool:
    """Return whether a hold-out has grown enough since the last analysis of its pair.

    Args:
        start_ns: start of the hold-out.
        analyzed_until_ns: its end at the last analysis; None before the first.
        end_ns: its end now.
        gate: the lengths.

    Examples:
        >>> from cryptovol_dagster.core.specs import DAY_S, NS
        >>> day_ns = DAY_S * NS
        >>> [is_analysis_due(0, day_ns, days * day_ns, GateSpec()) for days in (1, 2)]
        [False, True]
    """
    length_s = (end_ns - start_ns) / NS
    if analyzed_until_ns is None:
        return length_s >= _NEARLY * gate.first_look_s
    if end_ns <= analyzed_until_ns:
        return False
    return length_s >= _NEARLY * min(gate.growth * (analyzed_until_ns - start_ns) / NS, gate.measured_for_s)


def is_final_analysis(start_ns: int, end_ns: int, gate: GateSpec) -> bool:
    """Return whether a hold-out has reached its greatest length."""
    return (end_ns - start_ns) / NS >= _NEARLY * gate.measured_for_s


def analysis_level(
    start_ns: int,
    analyzed_until_ns: int | None,
    end_ns: int,
    spent: Sequence[InterimAnalysis],
    gate: GateSpec,
) -> float:
    """Return the level that an analysis may spend: the budget that accrued with rows not used before.

    Args:
        start_ns: start of the hold-out.
        analyzed_until_ns: its end at the last analysis; None before the first.
        end_ns: its end now.
        spent: earlier analyses, of any pair.
        gate: rate and window.

    Returns:
        At least 0; at 0 the budget of the window is used up.

    Examples:
        >>> from cryptovol_dagster.core.specs import DAY_S, NS
        >>> round(analysis_level(0, None, 3 * DAY_S * NS, (), GateSpec()), 6)
        0.0025
    """
    fresh_s = (end_ns - (analyzed_until_ns or start_ns)) / NS
    accrued = gate.error_rate * fresh_s / gate.error_window_s
    left = gate.error_rate - sum(one.level for one in still_counted(spent, end_ns, gate))
    return max(min(accrued, left, gate.most_per_look), 0.0)


def still_counted(
    spent: Sequence[InterimAnalysis], now_ns: int, gate: GateSpec
) -> tuple[InterimAnalysis, ...]:
    """Return the analyses that still count against the budget."""
    return tuple(one for one in spent if one.at_ns > now_ns - gate.error_window_s * NS)


def independent_block_s(rows: ScoredRows, horizon_s: float, gate: GateSpec) -> float:
    """Return the length of the blocks that count as independent: a twelfth of the span, two hours to a day.

    Violent days come in runs, so what is independent is long. With blocks of two hours throughout, the
    standard error of several days comes out a third too small. Few long blocks and Student's quantile err on
    the safe side.
    """
    if not rows.t_ns.size:
        return float(gate.least_block_s)
    span_s = (int(rows.t_ns[-1]) - int(rows.t_ns[0]) + rows.bar_ns) / NS
    shared = min(span_s / gate.blocks, DAY_S)
    return max(block_length_s(horizon_s, span_s), shared, gate.least_block_s)


def why_insufficient(rows: ScoredRows, block_s: float, gate: GateSpec) -> list[str]:
    """Return what is missing for a comparison, from the labels alone: this spends no error budget."""
    positives = int(rows.y.sum())
    blocks = count_positive_blocks(rows.t_ns, rows.y, block_s)
    reasons = []
    if positives < gate.min_positives:
        reasons.append(f"{positives} positives in the hold-out, {gate.min_positives} are needed")
    elif positives == rows.y.size:
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
        estimate: on all rows.
        low: lower bound at the analysis' level, one-sided.
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
    rows: ScoredRows, model: str, other: str, *, level: float, block_s: float, gate: GateSpec
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
    estimate = average_precision(rows.y, rows.scores[model]) - average_precision(rows.y, rows.scores[other])
    freedom = max(count_positive_blocks(rows.t_ns, rows.y, block_s) - 1, 1)
    return Difference(
        estimate=float(estimate),
        low=float(estimate - t.isf(level, freedom) * error),
        high=float(estimate + t.isf(gate.reject_level, freedom) * error),
        standard_error=error,
        level=level,
    )
