"""How good the probabilities of the model in force turned out to be, once the labels were known.

Each row was scored by the champion of its time, which had not learned from it, and is compared with that
champion's own thresholds. So a span over which the champion changed is measured as its users saw it, not as
one model.
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

#: Names of the scores: the champion's, and volatility measured over the last H by itself.
CHAMPION, PERSISTENCE = "champion", "persistence"


class Ranked(NamedTuple):
    """An average precision, or a difference of two.

    Attributes:
        estimate: on the rows as they are; None where these hold one class only.
        interval: of the block bootstrap; None where the data are insufficient.
    """

    estimate: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Performance:
    """What the scores of some rows were worth.

    Attributes:
        verdict: ``ok``, or ``insufficient_data``: then there is no interval, and the rest describes the rows.
        reasons: why data are insufficient.
        first: decision time of the first row, ISO 8601; None without rows.
        last: of the last.
        bar_s: distance of neighbouring rows of a product, in seconds.
        rows: labelled and scored.
        positives: of them spikes.
        positive_blocks: blocks of time with one.
        block_s: their length.
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
        """One line: what the numbers were measured on."""
        if not self.rows:
            return "no rows"
        return (
            f"{self.rows:,} rows, one each {self.bar_s:g} s, {self.first} … {self.last}; {self.positives:,} "
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
    """Measure the champion's scores beside persistence.

    Args:
        rows: with the scores `CHAMPION` and `PERSISTENCE`.
        horizon_s: H in seconds.
        resamples: of the block bootstrap.
        seed: of its blocks.
    """
    y, score = rows.y, rows.scores[CHAMPION]
    span_s = (int(rows.t_ns[-1] - rows.t_ns[0]) + rows.bar_ns) / NS if y.size else 0.0
    block_s = bootstrap.block_length_s(horizon_s, span_s)
    positives, blocks = int(y.sum()), bootstrap.count_positive_blocks(rows.t_ns, y, block_s) if y.size else 0
    reasons = _lacking(positives, int(y.size), blocks, block_s)
    precision, persistence = (rows.average_precision(name) for name in (CHAMPION, PERSISTENCE))
    gain = None if precision is None or persistence is None else precision - persistence
    of_precision = of_gain = None
    if not reasons:
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
    """Keep the rows of every n-th bar, counted from the epoch, so that spans thinned apart fit together."""
    if every == 1:
        return rows
    kept = rows.t_ns // rows.bar_ns % every == 0
    scores = {name: score[kept] for name, score in rows.scores.items()}
    return ScoredRows(rows.t_ns[kept], every * rows.bar_ns, rows.y[kept], scores)


def scaled_volatility(sigma: np.ndarray, product: np.ndarray, thresholds: dict[str, float]) -> np.ndarray:
    """Return volatility in units of its product's threshold, so that products rank together; unknown is 0."""
    taus = np.array([thresholds[str(name)] for name in product], dtype=np.float64)
    return np.nan_to_num(sigma / taus, nan=0.0)
