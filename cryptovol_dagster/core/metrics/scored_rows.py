"""The same rows, scored by several models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cryptovol_dagster.core.metrics import probabilities
from cryptovol_dagster.core.metrics import ranking as metrics
from cryptovol_dagster.core.metrics.bootstrap import block_length_s, count_positive_blocks
from cryptovol_dagster.core.specs import DAY_S, NS, GateSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
        return probabilities.brier(self.y, self.scores[name]) if self.y.size else None

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
        return max(block_length_s(horizon_s, span_s), shared, gate.least_block_s)

    def why_insufficient(self, block_s: float, gate: GateSpec) -> list[str]:
        """Return what a comparison lacks, from the labels alone, so that no error budget is spent."""
        positives = int(self.y.sum())
        blocks = count_positive_blocks(self.t_ns, self.y, block_s)
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
