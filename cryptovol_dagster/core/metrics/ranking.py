"""Numbers that say how good a ranking, a probability or an alarm is: pure functions of arrays.

Rankings are judged by average precision (the step-wise sum, not the trapezoid: Davis & Goadrich 2006), their
uncertainty by a circular block bootstrap over time (Politis & Romano 1994), because neighbouring seconds
share most of their label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from cryptovol_dagster.core.parallel import on_all_cores
from cryptovol_dagster.core.specs import NS

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: After an alarm the next one of the same product may sound this much later.
REFRACTORY_S = 300
#: Below these, intervals and verdicts are not to be trusted.
MIN_POSITIVES, MIN_POSITIVE_BLOCKS = 30, 10
#: Level of every interval.
INTERVAL_LEVEL = 0.95

_DAY_S = 86_400
_LEAST_BLOCK_S = 1_800
_PROBABILITY_FLOOR = 1e-15
#: Log-odds of a calibration line stay within ± 13.8: one row of a certain error would turn it.
_LOGIT_FLOOR = 1e-6
#: More than maximum likelihood with two numbers ever takes.
_NEWTON_STEPS = 50
#: Steps of this size have arrived; a curvature of this condition has no summit.
_CONVERGED, _FLAT = 1e-9, 1e12


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
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def brier(y: NDArray[np.bool_], probability: NDArray[np.float64]) -> float:
    """Mean squared error of the probability; the constant base rate b scores b(1 − b)."""
    return float(np.mean((probability - y) ** 2))


def log_loss(y: NDArray[np.bool_], probability: NDArray[np.float64]) -> float:
    """Mean negative log likelihood in nats; probabilities are kept 1e-15 away from 0 and 1."""
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
    """Compare mean probability and share of spikes in bins of equal width; empty bins are left out."""
    index = np.minimum((probability * bins).astype(int), bins - 1)
    rows = np.bincount(index, minlength=bins)
    predicted = np.bincount(index, weights=probability, minlength=bins)
    observed = np.bincount(index, weights=y, minlength=bins)
    return [
        ReliabilityBin(k / bins, (k + 1) / bins, int(rows[k]), predicted[k] / rows[k], observed[k] / rows[k])
        for k in np.flatnonzero(rows)
    ]


def expected_calibration_error(table: list[ReliabilityBin]) -> float:
    """Mean distance of predicted and observed over the bins, weighted by their rows."""
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
    """Fit the calibration line by maximum likelihood; None where there is none to fit.

    There is none with a single class, with a constant probability, and where the classes are separated, or
    so nearly that the slope has no end.
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
        # Halved until it leads down: the loss is convex, so this always arrives.
        before = loss(line)
        while loss(line + step) > before and np.abs(step).max() > _CONVERGED:
            step /= 2
        line += step
        if np.abs(step).max() < _CONVERGED:
            slope = float(line[0]) / scale
            return Calibration(slope, float(line[1]) - slope * middle)
    return None


# --- intervals
# ------------------------------------------------------------------------------------------------


def least_block_s(horizon_s: float) -> float:
    """Distance from which spikes may count as two: 5 H, and at least 30 min."""
    return max(5 * horizon_s, _LEAST_BLOCK_S)


def block_length_s(horizon_s: float, span_s: float) -> float:
    """Length of a bootstrap block: at least 5 H and 30 min; a day where the span is ten days or more."""
    least = least_block_s(horizon_s)
    return max(least, _DAY_S) if span_s >= 10 * _DAY_S else least


def count_positive_blocks(t_ns: NDArray[np.int64], y: NDArray[np.bool_], block_s: float) -> int:
    """Count the disjoint blocks of time, from the first row on, in which a positive lies."""
    if not y.any():
        return 0
    return int(np.unique((t_ns[y] - t_ns.min()) // int(block_s * NS)).size)


@dataclass(frozen=True)
class BlockBootstrap:
    """Circular block bootstrap over time; rows of all products at one time stay together.

    Attributes:
        t_ns: time of each row.
        bar_ns: distance of neighbouring times.
        block_s: length of a block.
        resamples: how many.
        seed: of the blocks drawn.
    """

    t_ns: NDArray[np.int64]
    bar_ns: int
    block_s: float
    resamples: int
    seed: int

    def weights(self) -> Iterator[NDArray[np.int32]]:
        """Yield for each resample how often each row was drawn."""
        slot, slots = self._slots()
        for drawn in self._drawn(slots):
            yield drawn[slot]

    def average_precisions(
        self,
        y: NDArray[np.bool_],
        scores: Mapping[str, NDArray[np.float64]],
        rows: NDArray[np.bool_] | None = None,
    ) -> dict[str, NDArray[np.float64]]:
        """Return AP of each score on the *same* resamples; NaN where no positive was drawn.

        Args:
            y: bool labels, one a row.
            scores: one a row, by the name of their model.
            rows: only these rows count (the resamples stay those of all); default: every row.
        """
        slot, slots = self._slots()
        own = slice(None) if rows is None else rows

        def precisions(score: NDArray[np.float64]) -> NDArray[np.float64]:
            ranking = Ranking(y[own], score[own], slot[own])
            # Drawn anew for each score: that is little beside the ranking, and nobody waits for anybody.
            return np.array([ranking.average_precision(drawn) for drawn in self._drawn(slots)])

        return dict(zip(scores, on_all_cores(precisions, scores.values()), strict=True))

    def _slots(self) -> tuple[NDArray[np.int64], int]:
        slot = (self.t_ns - self.t_ns.min()) // self.bar_ns
        return slot, int(slot.max()) + 1

    def _drawn(self, slots: int) -> Iterator[NDArray[np.int32]]:
        """Yield for each resample how often each bar of the span was drawn."""
        block = min(max(round(self.block_s * NS / self.bar_ns), 1), slots)
        blocks = -(-slots // block)
        # The last block is cut so that every resample is as long as the span itself.
        lengths = np.full(blocks, block)
        lengths[-1] = slots - block * (blocks - 1)
        edges, drawn = (np.empty(2 * slots + 1, dtype=np.int32) for _ in range(2))
        random = np.random.default_rng(self.seed)
        for _ in range(self.resamples):
            starts = random.integers(0, slots, blocks)
            edges[:] = 0
            np.add.at(edges, starts, 1)
            np.subtract.at(edges, starts + lengths, 1)
            np.cumsum(edges, out=drawn)
            yield drawn[:slots] + drawn[slots : 2 * slots]


class Interval(NamedTuple):
    """Percentile interval of `INTERVAL_LEVEL`."""

    low: float
    high: float


def interval(resampled: NDArray[np.float64]) -> Interval:
    """Percentile interval over resamples; those without a positive (NaN) say nothing and are left out."""
    tail = (1 - INTERVAL_LEVEL) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Interval(float(low), float(high))


# --- operating points and events
# ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """A spike episode of one product: decision times of its first and last positive row."""

    product: str
    start_ns: int
    end_ns: int

    def holds(self, product: str, t_ns: int) -> bool:
        """Whether a product's row lies inside."""
        return self.product == product and self.start_ns <= t_ns <= self.end_ns


@dataclass(frozen=True)
class Market:
    """Rows of a test (or validation) block as somebody on duty lives through them.

    Attributes:
        product: name of each row's product.
        t_ns: decision times, ascending within a product.
        y: whether ``(t, t + H]`` is a spike.
        visible: whether the trailing window already is one (False where unknown).
        bar_ns: length of a bar.
        horizon_ns: H.
    """

    product: NDArray[np.object_]
    t_ns: NDArray[np.int64]
    y: NDArray[np.bool_]
    visible: NDArray[np.bool_]
    bar_ns: int
    horizon_ns: int

    @cached_property
    def hours(self) -> float:
        """Hours in which at least one product was scored."""
        return np.unique(self.t_ns).size * self.bar_ns / NS / 3_600

    @cached_property
    def _own_rows(self) -> dict[str, NDArray[np.int64]]:
        """The rows of each product, in order of time. Sorting names anew for each question takes seconds."""
        codes, names = pd.factorize(self.product, sort=True)
        return {str(name): np.flatnonzero(codes == code) for code, name in enumerate(names)}

    @cached_property
    def _own_times(self) -> dict[str, NDArray[np.int64]]:
        return {name: self.t_ns[own] for name, own in self._own_rows.items()}

    def events(self) -> list[Event]:
        """Runs of positive rows of a product; gaps of at most H are bridged."""
        found = []
        for name, own in self._own_rows.items():
            times = self.t_ns[own[self.y[own]]]
            if times.size:
                cuts = np.flatnonzero(np.diff(times) > self.horizon_ns)
                starts, ends = times[np.append(0, cuts + 1)], times[np.append(cuts, times.size - 1)]
                found += [Event(name, int(a), int(b)) for a, b in zip(starts, ends, strict=True)]
        return found

    def in_event(self, events: list[Event]) -> NDArray[np.bool_]:
        """Say which rows lie inside an event, bridged gaps included."""
        inside = np.zeros(self.t_ns.size, dtype=bool)
        for event in events:
            inside[self._during(event)] = True
        return inside

    def alarms(self, flagged: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the rows at which an alarm sounds: flagged, no alarm of the product in the last 5 min."""
        sounded: list[int] = []
        for own in self._own_rows.values():
            rows = own[flagged[own]]
            times = self.t_ns[rows]
            at = 0
            while at < rows.size:
                sounded.append(int(rows[at]))
                at = int(np.searchsorted(times, times[at] + REFRACTORY_S * NS))
        return np.array(sorted(sounded), dtype=np.int64)

    def first_flags(self, flagged: NDArray[np.bool_], events: list[Event]) -> list[FirstFlag]:
        """For each event that was flagged: how late the flag came, and how long before the spike showed.

        The delay counts from the event's first positive row. The lead counts up to the first row of the
        event whose own trailing window is a spike, which is when measuring alone would have told; negative =
        later than that.
        """
        found = []
        for event in events:
            during = self._during(event)
            hits = self.t_ns[during[flagged[during]]]
            if hits.size:
                first = int(hits.min())
                until = self._during(Event(event.product, event.start_ns, event.end_ns + self.horizon_ns))
                shown = self.t_ns[until[self.visible[until]]]
                lead = (int(shown.min()) - first) / NS if shown.size else None
                found.append(FirstFlag(delay_s=(first - event.start_ns) / NS, lead_s=lead))
        return found

    def _during(self, event: Event) -> NDArray[np.int64]:
        own = self._own_rows[event.product]
        first, stop = np.searchsorted(self._own_times[event.product], [event.start_ns, event.end_ns + 1])
        return own[first:stop]


class FirstFlag(NamedTuple):
    """What an event's first flag was worth, in seconds."""

    delay_s: float
    lead_s: float | None


def best_f1_threshold(y: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    """Return the threshold of the highest F1 (of several the highest); None without a positive."""
    ranking = Ranking(y, score)
    hits, flagged = ranking.counts()
    if not hits.size or hits[-1] == 0:
        return None
    return float(ranking.thresholds[np.argmax(2 * hits / (flagged + hits[-1]))])


def alert_budget_threshold(
    market: Market, score: NDArray[np.float64], budget_per_hour: float, candidates: int = 200
) -> float | None:
    """Return the lowest threshold down to which false alarms stay within the budget; None if none does.

    False alarms are counted over all products together, with the refractory time, as one person would hear
    them. Candidates are quantiles of the scores.
    """
    inside = market.in_event(market.events())
    lowest = None
    for threshold in np.unique(np.quantile(score, np.linspace(0, 1, candidates), method="higher"))[::-1]:
        alarms = market.alarms(score >= threshold)
        if np.count_nonzero(~inside[alarms]) / market.hours > budget_per_hour:
            break
        lowest = float(threshold)
    return lowest
