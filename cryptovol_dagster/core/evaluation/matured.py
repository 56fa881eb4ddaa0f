"""Quality of the champion's published probabilities, once the labels are known.

Each row was scored by the champion of its time, which had not learned from it, and its label comes from that
champion's own thresholds. So a span with several champions is measured as its users saw it, not as one model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from cryptovol_dagster.core.evaluation.evaluate import INSUFFICIENT_DATA, OK
from cryptovol_dagster.core.metrics import bootstrap, probabilities
from cryptovol_dagster.core.metrics.bootstrap import (
    MIN_POSITIVE_BLOCKS,
    MIN_POSITIVES,
    BlockBootstrap,
    Interval,
)
from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import iso_utc

#: Names of the scores: the champion's, and the volatility of the last H alone.
CHAMPION, PERSISTENCE = "champion", "persistence"


class Ranked(NamedTuple):
    """An average precision, or a difference of two.

    Attributes:
        estimate: on all rows; None where these have one class only.
        interval: of the block bootstrap; None where the data are insufficient.
    """

    estimate: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Performance:
    """Metrics of the scores of some rows.

    Attributes:
        verdict: ``ok``, or ``insufficient_data``: then there are no intervals.
        reasons: why data are insufficient.
        first: decision time of the first row, ISO 8601; None without rows.
        last: of the last.
        bar_s: distance between neighbouring rows of a product, in seconds.
        rows: number of labelled and scored rows.
        positives: number of spikes among them.
        positive_blocks: number of blocks of time with a spike.
        block_s: length of a block, in seconds.
        base_rate: share of positives; None without rows.
        average_precision: of the champion.
        over_persistence: the same minus that of persistence on the same rows.
        brier: of the probabilities; None without rows.
        expected_calibration_error: of ten bins; None without rows.
    """

    verdict: str
    reasons: tuple[str, ...]
    first: str | None
    last: str | None
    bar_s: float
    rows: int
    positives: int
    positive_blocks: int
    block_s: float
    base_rate: float | None
    average_precision: Ranked
    over_persistence: Ranked
    brier: float | None
    expected_calibration_error: float | None

    @property
    def measured_on(self) -> str:
        """One line that describes the measured rows."""
        if not self.rows:
            return "no rows"
        return (
            f"{self.rows:,} rows, one every {self.bar_s:g} s, {self.first} … {self.last}; {self.positives:,} "
            f"spikes in {self.positive_blocks} blocks of {self.block_s / 60:g} min"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form."""
        body = asdict(self) | {"reasons": list(self.reasons), "measured_on": self.measured_on}
        for name, ranked in (
            ("average_precision", self.average_precision),
            ("over_persistence", self.over_persistence),
        ):
            interval = None if ranked.interval is None else ranked.interval._asdict()
            body[name] = {"estimate": ranked.estimate, "interval": interval}
        return body


def measure(rows: ScoredRows, *, horizon_s: float, resamples: int, seed: int) -> Performance:
    """Measure the champion's scores, and persistence on the same rows.

    Args:
        rows: with the scores `CHAMPION` and `PERSISTENCE`.
        horizon_s: H in seconds.
        resamples: of the block bootstrap; 0: no intervals.
        seed: of its blocks.

    Examples:
        >>> y = np.arange(100) % 4 == 3
        >>> scores = {CHAMPION: y.astype(float), PERSISTENCE: np.roll(y, 1).astype(float)}
        >>> found = measure(ScoredRows(NS * np.arange(100), NS, y, scores), horizon_s=1, resamples=10, seed=7)
        >>> found.average_precision.estimate, found.verdict
        (1.0, 'insufficient_data')
    """
    y, score = rows.y, rows.scores[CHAMPION]
    span_s = (int(rows.t_ns[-1] - rows.t_ns[0]) + rows.bar_ns) / NS if y.size else 0.0
    block_s = bootstrap.block_length_s(horizon_s, span_s)
    positives, blocks = int(y.sum()), bootstrap.count_positive_blocks(rows.t_ns, y, block_s) if y.size else 0
    reasons = _lacking(positives, int(y.size), blocks, block_s)
    precision, persistence = (rows.average_precision(name) for name in (CHAMPION, PERSISTENCE))
    gain = None if precision is None or persistence is None else precision - persistence
    of_precision = of_gain = None
    if resamples and not reasons:
        resampled = BlockBootstrap(rows.t_ns, rows.bar_ns, block_s, resamples, seed).average_precisions(
            y, rows.scores
        )
        of_precision = bootstrap.interval(resampled[CHAMPION])
        of_gain = bootstrap.interval(resampled[CHAMPION] - resampled[PERSISTENCE])
    return Performance(
        verdict=INSUFFICIENT_DATA if reasons else OK,
        reasons=reasons,
        first=iso_utc(int(rows.t_ns[0])) if y.size else None,
        last=iso_utc(int(rows.t_ns[-1])) if y.size else None,
        bar_s=rows.bar_ns / NS,
        rows=int(y.size),
        positives=positives,
        positive_blocks=blocks,
        block_s=block_s,
        base_rate=float(y.mean()) if y.size else None,
        average_precision=Ranked(precision, of_precision),
        over_persistence=Ranked(gain, of_gain),
        brier=rows.brier(CHAMPION),
        expected_calibration_error=(
            float(probabilities.expected_calibration_error(probabilities.reliability(y, score)))
            if y.size
            else None
        ),
    )


def _lacking(positives: int, rows: int, blocks: int, block_s: float) -> tuple[str, ...]:
    reasons = []
    if positives < MIN_POSITIVES:
        reasons.append(f"{positives} spikes, {MIN_POSITIVES} are needed")
    elif positives == rows:
        reasons.append(f"the {rows} rows are all spikes")
    if blocks < MIN_POSITIVE_BLOCKS:
        reasons.append(
            f"{blocks} blocks of {block_s / 60:g} min with a spike, {MIN_POSITIVE_BLOCKS} are needed"
        )
    return tuple(reasons)


def thinned(rows: ScoredRows, every: int) -> ScoredRows:
    """Return the rows of every n-th bar, counted from the epoch, so that spans thinned separately match."""
    if every == 1:
        return rows
    kept = rows.t_ns // rows.bar_ns % every == 0
    scores = {name: score[kept] for name, score in rows.scores.items()}
    return ScoredRows(rows.t_ns[kept], every * rows.bar_ns, rows.y[kept], scores)


def scaled_volatility(sigma: np.ndarray, product: np.ndarray, thresholds: dict[str, float]) -> np.ndarray:
    """Return volatility in units of its product's threshold, so that products are comparable; unknown is 0.

    Examples:
        >>> names = np.array(["BTC-USD", "ETH-USD"], dtype=object)
        >>> scaled_volatility(np.array([4e-5, 3e-5]), names, {"BTC-USD": 2e-5, "ETH-USD": 3e-5})
        array([2., 1.])
    """
    taus = np.array([thresholds[str(name)] for name in product], dtype=np.float64)
    return np.nan_to_num(sigma / taus, nan=0.0)
