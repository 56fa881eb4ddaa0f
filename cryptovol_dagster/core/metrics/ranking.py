"""Numbers that say how good a ranking, a probability or an alarm is: pure functions of arrays.

Rankings are judged by average precision (the step-wise sum, not the trapezoid: Davis & Goadrich 2006), their
uncertainty by a circular block bootstrap over time (Politis & Romano 1994), because neighbouring seconds
share most of their label.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Ranking:
    """Labels in the order of falling scores, sorted once, so that AP under any weights is a single pass.

    Args:
        y: bool labels, shape (n,).
        score: the higher, the likelier; ties share one place in the ranking.
        slot: which entry of the weights is each row's own; default: the row's number.
    """

    def __init__(
        self, y: NDArray[np.bool_], score: NDArray[np.float64], slot: NDArray[np.int64] | None = None
    ) -> None:
        order, self._ends = _falling(score)
        self._y = y[order]
        self.thresholds = score[order[self._ends]]
        self._slot = order if slot is None else slot[order]
        # AP gains only in groups that hold a positive: for each, where its positives begin and where it ends.
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
        # Where nothing is flagged yet (all weights zero) nothing is gained either.
        return float(np.sum(gained * hits / np.maximum(flagged, 1)) / hits[-1])

    @cached_property
    def _room(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Two arrays that every pass writes over: fresh ones cost more than what is computed in them."""
        size = int(self._gaining_ends[-1]) + 1  # below the last positive nothing is gained any more
        return np.empty(size, dtype=np.int32), np.empty(size, dtype=np.int32)


def _falling(score: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows by falling score, and the last place of each group of equal scores.

    Only at such places can a threshold lie.
    """
    order = np.argsort(-score, kind="stable")
    falling = score[order]
    return order, np.flatnonzero(np.append(falling[1:] != falling[:-1], True)[: score.size])


def average_precision(y: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Step-wise average precision; NaN without a positive."""
    return Ranking(y, score).average_precision()


class ShiftNull(NamedTuple):
    """Average precision by chance: what the same scores reach on labels shifted in time.

    Attributes:
        shifts: how many shifts were tried.
        mean: of their average precisions.
        quantile_95: of the same.
        share_at_or_above: share of shifts that reach at least the unshifted one; small means skill.
    """

    shifts: int
    mean: float
    quantile_95: float
    share_at_or_above: float


def time_shift_null(
    y: NDArray[np.bool_], score: NDArray[np.float64], product: NDArray[np.object_], shifts: int = 100
) -> ShiftNull | None:
    """Compare a ranking with its own chance level under serial dependence; None with a single class.

    Each product's labels are moved along its test rows as on a circle, by the same share of their length
    (15 % to 85 %). That destroys any relation to the scores and keeps the clustering of both, which random
    permutations would not: with few spike episodes a lift of 2 comes up by chance.

    Args:
        y: bool labels, shape (n,), in time order within a product.
        score: the higher, the likelier.
        product: name of each row's product.
        shifts: how many, evenly spaced.
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
    """Chance that a random positive outranks a random negative (ties count half); NaN with a single class."""
    from scipy.stats import rankdata

    positives = int(y.sum())
    negatives = y.size - positives
    if not positives or not negatives:
        return float("nan")
    rank_sum = float(rankdata(score)[y].sum())
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def best_f1_threshold(y: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    """Return the threshold of the highest F1 (of several the highest); None without a positive."""
    ranking = Ranking(y, score)
    hits, flagged = ranking.counts()
    if not hits.size or hits[-1] == 0:
        return None
    return float(ranking.thresholds[np.argmax(2 * hits / (flagged + hits[-1]))])
