"""Uncertainty of metrics: intervals by resampling whole blocks of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cryptovol_dagster.core.parallel import on_all_cores
from cryptovol_dagster.core.specs import DAY_S, NS

if TYPE_CHECKING:
    from numpy.typing import NDArray
from cryptovol_dagster.core.metrics.ranking import Ranking

#: With fewer, intervals and verdicts are unreliable.
MIN_POSITIVES, MIN_POSITIVE_BLOCKS = 30, 10
#: Level of every interval.
INTERVAL_LEVEL = 0.95

_LEAST_BLOCK_S = 1_800


def least_block_s(horizon_s: float) -> float:
    """Return the distance in seconds from which spikes may count as two: 5 H, and at least 30 min.

    Examples:
        >>> least_block_s(60), least_block_s(900)
        (1800, 4500)
    """
    return max(5 * horizon_s, _LEAST_BLOCK_S)


def block_length_s(horizon_s: float, span_s: float) -> float:
    """Return the length of a bootstrap block in seconds.

    It is at least 5 H and 30 min; a day where the span is ten days or more.
    """
    least = least_block_s(horizon_s)
    return max(least, DAY_S) if span_s >= 10 * DAY_S else least


def count_positive_blocks(t_ns: NDArray[np.int64], y: NDArray[np.bool_], block_s: float) -> int:
    """Count the disjoint blocks of time, from the first row on, that contain a positive.

    Examples:
        >>> t_ns = NS * np.array([0, 10, 20, 3_000])
        >>> count_positive_blocks(t_ns, np.array([True, True, False, True]), block_s=1_800)
        2
    """
    if not y.any():
        return 0
    return int(np.unique((t_ns[y] - t_ns.min()) // int(block_s * NS)).size)


@dataclass(frozen=True)
class BlockBootstrap:
    """Circular block bootstrap over time; rows of all products at one time stay together.

    Attributes:
        t_ns: time of each row.
        bar_ns: distance between neighbouring times.
        block_s: length of a block.
        resamples: number of resamples.
        seed: of the random blocks.
    """

    t_ns: NDArray[np.int64]
    bar_ns: int
    block_s: float
    resamples: int
    seed: int

    def weights(self) -> Iterator[NDArray[np.int32]]:
        """Yield, for each resample, how often each row was drawn."""
        slot, slots = self._slots()
        for drawn in self._drawn(slots):
            yield drawn[slot]

    def average_precisions(
        self,
        y: NDArray[np.bool_],
        scores: Mapping[str, NDArray[np.float64]],
        rows: NDArray[np.bool_] | None = None,
    ) -> dict[str, NDArray[np.float64]]:
        """Return each score's average precision on the *same* resamples; NaN where no positive was drawn.

        Args:
            y: bool labels, shape (n,).
            scores: shape (n,), by model name.
            rows: only these rows count (the resamples are still those of all rows); default: every row.

        Examples:
            >>> t_ns = NS * np.arange(6)
            >>> bootstrap = BlockBootstrap(t_ns, bar_ns=NS, block_s=2, resamples=3, seed=7)
            >>> y = np.array([False, False, True, False, True, True])
            >>> bootstrap.average_precisions(y, {"perfect": y.astype(float)})
            {'perfect': array([1., 1., 1.])}
        """
        slot, slots = self._slots()
        own = slice(None) if rows is None else rows

        def precisions(score: NDArray[np.float64]) -> NDArray[np.float64]:
            ranking = Ranking(y[own], score[own], slot[own])
            # Drawn again for each score: cheap compared with the ranking, and no thread waits for another.
            return np.array([ranking.average_precision(drawn) for drawn in self._drawn(slots)])

        return dict(zip(scores, on_all_cores(precisions, scores.values()), strict=True))

    def _slots(self) -> tuple[NDArray[np.int64], int]:
        slot = (self.t_ns - self.t_ns.min()) // self.bar_ns
        return slot, int(slot.max()) + 1

    def _drawn(self, slots: int) -> Iterator[NDArray[np.int32]]:
        """Yield, for each resample, how often each bar of the span was drawn."""
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
    """Return the percentile interval over resamples; those without a positive (NaN) are left out.

    Examples:
        >>> low, high = interval(np.array([0.2, 0.3, np.nan, 0.4]))
        >>> round(low, 3), round(high, 3)
        (0.205, 0.395)
    """
    tail = (1 - INTERVAL_LEVEL) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Interval(float(low), float(high))
