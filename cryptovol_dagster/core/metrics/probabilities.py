"""Quality of probabilities: Brier score, log loss, calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


_PROBABILITY_FLOOR = 1e-15
#: Log-odds of a calibration line stay within ± 13.8: otherwise a single row could tilt the line.
_LOGIT_FLOOR = 1e-6
#: More steps than maximum likelihood with two parameters ever takes.
_NEWTON_STEPS = 50
#: Step size at which the fit has converged; condition number at which the likelihood has no maximum.
_CONVERGED, _FLAT = 1e-9, 1e12


def brier(y: NDArray[np.bool_], probability: NDArray[np.float64]) -> float:
    """Return the mean squared error of the probability; the constant base rate b scores b(1 − b).

    Examples:
        >>> round(brier(np.array([True, False, False, False]), np.full(4, 0.25)), 4)
        0.1875
    """
    return float(np.mean((probability - y) ** 2))


def log_loss(y: NDArray[np.bool_], probability: NDArray[np.float64]) -> float:
    """Return the mean negative log likelihood in nats; probabilities are kept 1e-15 away from 0 and 1.

    Examples:
        >>> round(log_loss(np.array([True, False]), np.array([0.5, 0.5])), 4)
        0.6931
    """
    bounded = np.clip(probability, _PROBABILITY_FLOOR, 1 - _PROBABILITY_FLOOR)
    return float(-np.mean(np.where(y, np.log(bounded), np.log1p(-bounded))))


class ReliabilityBin(NamedTuple):
    """One bin ``[low, high)`` of predicted probability; the last includes 1."""

    low: float
    high: float
    rows: int
    predicted: float
    observed: float


def reliability(
    y: NDArray[np.bool_], probability: NDArray[np.float64], bins: int = 10
) -> list[ReliabilityBin]:
    """Compare mean probability and share of spikes in bins of equal width; empty bins are left out.

    Examples:
        >>> y = np.array([False, True, True, True])
        >>> [(b.rows, round(b.observed, 2)) for b in reliability(y, np.array([0.2, 0.3, 0.8, 0.9]), bins=2)]
        [(2, np.float64(0.5)), (2, np.float64(1.0))]
    """
    index = np.minimum((probability * bins).astype(int), bins - 1)
    rows = np.bincount(index, minlength=bins)
    predicted = np.bincount(index, weights=probability, minlength=bins)
    observed = np.bincount(index, weights=y, minlength=bins)
    return [
        ReliabilityBin(k / bins, (k + 1) / bins, int(rows[k]), predicted[k] / rows[k], observed[k] / rows[k])
        for k in np.flatnonzero(rows)
    ]


def expected_calibration_error(table: list[ReliabilityBin]) -> float:
    """Return the mean distance of predicted and observed over the bins, weighted by their rows."""
    rows = sum(part.rows for part in table)
    return sum(part.rows * abs(part.predicted - part.observed) for part in table) / rows


class Calibration(NamedTuple):
    """The line ``logit P(y) = intercept + slope · logit p`` (Cox 1958); perfect probabilities have 0 and 1.

    A slope below 1 means probabilities too far apart (as after overfitting); an intercept below 0, with a
    slope of 1, means too many alarms.
    """

    slope: float
    intercept: float


def calibration_line(y: NDArray[np.bool_], probability: NDArray[np.float64]) -> Calibration | None:
    """Fit the calibration line by maximum likelihood; None where no line can be fitted.

    That is so with a single class, with a constant probability, and where the classes are separated so
    well that the slope has no finite optimum.
    """
    if not y.any() or y.all():
        return None
    bounded = np.clip(probability, _LOGIT_FLOOR, 1 - _LOGIT_FLOOR)
    log_odds = np.log(bounded / (1 - bounded))
    if log_odds[y].min() >= log_odds[~y].max() or log_odds[y].max() <= log_odds[~y].min():
        return None
    middle, scale = float(log_odds.mean()), float(log_odds.std())
    columns = np.column_stack([(log_odds - middle) / scale, np.ones(y.size)])

    def loss(line: NDArray[np.floating[Any]]) -> float:
        at = columns @ line
        return float(np.sum(np.logaddexp(0, at) - y * at))

    base = float(y.mean())
    line = np.array([0.0, np.log(base / (1 - base))])
    for _ in range(_NEWTON_STEPS):
        expected = 1 / (1 + np.exp(-(columns @ line)))
        curvature = (columns * (expected * (1 - expected))[:, None]).T @ columns
        if np.linalg.cond(curvature) > _FLAT:
            return None
        step = np.linalg.solve(curvature, columns.T @ (y - expected))
        # The step is halved until the loss falls: the loss is convex, so this always ends.
        before = loss(line)
        while loss(line + step) > before and np.abs(step).max() > _CONVERGED:
            step /= 2
        line += step
        if np.abs(step).max() < _CONVERGED:
            slope = float(line[0]) / scale
            return Calibration(slope, float(line[1]) - slope * middle)
    return None
