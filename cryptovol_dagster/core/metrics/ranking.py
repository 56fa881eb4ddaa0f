"""Metrics of rankings: pure functions of arrays.

A ranking is measured by average precision (the step-wise sum, not the trapezoid: Davis & Goadrich 2006). Its
uncertainty comes from a circular block bootstrap over time (Politis & Romano 1994), because neighbouring
seconds share most of their label.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Ranking:
    """Labels in the order of falling scores, sorted once; average precision then takes one pass.

    Args:
        y: bool labels, shape (n,).
        score: higher is likelier; ties share one place in the ranking.
        slot: index of each row's entry in the weights; default: the row's number.
    """

    def __init__(
        self, y: NDArray[np.bool_], score: NDArray[np.float64], slot: NDArray[np.int64] | None = None
    ) -> None:
        order, self._ends = _falling(score)
        self._y = y[order]
        self.thresholds = score[order[self._ends]]
        self._slot = order if slot is None else slot[order]
        # AP grows only in groups with a positive: for each, where its positives begin and where it ends.
        at = np.flatnonzero(self._y)
        group, self._first_positive = np.unique(np.searchsorted(self._ends, at), return_index=True)
        self._positive_slot, self._gaining_ends = self._slot[at], self._ends[group]

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (true positives, flagged rows) at each threshold, from the highest down."""
        return np.cumsum(self._y.astype(np.int64))[self._ends], self._ends + 1

    def average_precision(self, weight: NDArray[np.int32] | None = None) -> float:
        """``Σ_k (recall_k − recall_{k−1}) · precision_k`` over thresholds; NaN without a positive.

        Args:
            weight: how often the rows of each slot count, adding up to less than 2³¹; default: once.
        """
        if not self._positive_slot.size:
            return float("nan")
        if weight is None:
            weight = np.ones(int(self._slot.max()) + 1, dtype=np.int32)
        gained = np.add.reduceat(weight[self._positive_slot], self._first_positive)
        hits = np.cumsum(gained, dtype=np.int64)
        if hits[-1] == 0:
            return float("nan")
        drawn, running = self._room
        np.take(weight, self._slot[: drawn.size], out=drawn, mode="clip")
        flagged = np.cumsum(drawn, out=running)[self._gaining_ends]
        # Where nothing is flagged yet (all weights zero) there is no gain either.
        return float(np.sum(gained * hits / np.maximum(flagged, 1)) / hits[-1])

    @cached_property
    def _room(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return two arrays that every pass overwrites: new ones would cost more than the computation."""
        size = int(self._gaining_ends[-1]) + 1  # no gain below the last positive
        return np.empty(size, dtype=np.int32), np.empty(size, dtype=np.int32)


def _falling(score: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows by falling score, and the last place of each group of equal scores.

    A threshold can only be at such a place.
    """
    order = np.argsort(-score, kind="stable")
    falling = score[order]
    return order, np.flatnonzero(np.append(falling[1:] != falling[:-1], True)[: score.size])


def average_precision(y: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Return the step-wise average precision; NaN without a positive.

    Examples:
        >>> y = np.array([True, False, True, False, False, False, False, True, False, False])
        >>> score = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
        >>> round(average_precision(y, score), 4)
        0.6806
    """
    return Ranking(y, score).average_precision()


class ShiftNull(NamedTuple):
    """Average precision by chance: that of the same scores on labels shifted in time.

    Attributes:
        shifts: number of shifts.
        mean: mean of their average precisions.
        quantile_95: 95 % quantile of the same.
        share_at_or_above: share of shifts at or above the unshifted average precision; small means skill.
    """

    shifts: int
    mean: float
    quantile_95: float
    share_at_or_above: float


def time_shift_null(
    y: NDArray[np.bool_], score: NDArray[np.float64], product: NDArray[np.object_], shifts: int = 100
) -> ShiftNull | None:
    """Return the chance level of a ranking under serial dependence; None with a single class.

    Each product's labels are rotated along its test rows by the same share of their length (15 % to 85 %).
    That destroys any relation to the scores and keeps the clustering of both. Random permutations would not
    keep it: with few spike episodes a lift of 2 occurs by chance.

    Args:
        y: bool labels, shape (n,), in time order within a product.
        score: higher is likelier.
        product: name of each row's product.
        shifts: number of shifts, evenly spaced.
    """
    if not y.any() or y.all():
        return None
    order, ends = _falling(score)

    def precision(labels: NDArray[np.bool_]) -> float:
        hits = np.cumsum(labels[order])[ends]
        return float(np.sum(np.diff(hits, prepend=0) * hits / (ends + 1)) / hits[-1])

    own_rows = [np.flatnonzero(product == name) for name in np.unique(product)]
    by_chance = np.empty(shifts)
    for i, share in enumerate(np.linspace(0.15, 0.85, shifts)):
        shifted = y.copy()
        for own in own_rows:
            shifted[own] = np.roll(y[own], int(share * own.size))
        by_chance[i] = precision(shifted)
    reached = by_chance >= precision(y) - 1e-12
    return ShiftNull(
        shifts, float(by_chance.mean()), float(np.quantile(by_chance, 0.95)), float(reached.mean())
    )


def roc_auc(y: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Return the area under the ROC curve; NaN with a single class.

    It is the probability that a random positive ranks above a random negative; ties count half.

    Examples:
        >>> roc_auc(np.array([True, False, True]), np.array([0.9, 0.5, 0.1]))
        0.5
    """
    from scipy.stats import rankdata

    positives = int(y.sum())
    negatives = y.size - positives
    if not positives or not negatives:
        return float("nan")
    rank_sum = float(rankdata(score)[y].sum())
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def best_f1_threshold(y: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    """Return the threshold of the highest F1 (the highest of several); None without a positive.

    Examples:
        >>> best_f1_threshold(np.array([False, True, True]), np.array([0.1, 0.6, 0.9]))
        0.6
    """
    ranking = Ranking(y, score)
    hits, flagged = ranking.counts()
    if not hits.size or hits[-1] == 0:
        return None
    return float(ranking.thresholds[np.argmax(2 * hits / (flagged + hits[-1]))])
