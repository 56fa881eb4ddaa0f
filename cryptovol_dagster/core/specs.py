"""What a computation was asked to do: frozen, hashable, free of where the numbers came from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

NS = 1_000_000_000
HOUR_S, DAY_S = 3_600, 86_400
#: Targets: volatility from close to close, or after Garman and Klass.
RV, GK = "rv", "gk"


class _Hashable:
    def hash(self) -> str:
        """Short stable hash of every field, for names of versions."""
        text = json.dumps(asdict(self), sort_keys=True)  # type: ignore[call-overload] - subclasses are dataclasses
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class SplitSpec(_Hashable):
    """How a labelled span is cut; all spans in seconds of time, never in rows."""

    train_span_s: int
    test_span_s: int
    max_test_share: float
    validation_share: float
    embargo_s: int


@dataclass(frozen=True)
class TimescaleSpec(_Hashable):
    """One chain: a grid of bars and features, and on it one horizon to learn.

    Attributes:
        name: of the chain; labels, splits, models, evaluation and champion stand under it ("minutes_h5").
        grid: of the timescale; bars and features stand under it, and horizons share them ("minutes").
        bar_interval_s: length of a bar.
        partition_s: length of a partition: an hour or a day.
        quotes: whether bars are made of quotes; candles have none, and no features of them.
        windows_bars: feature windows.
        ewma_half_lives_bars: of the EWMA features.
        horizon_bars: H; a label looks at (t, t + H].
        target: what volatility is to be told: `RV` (close to close) or `GK` (Garman–Klass).
        quantile: a spike is at or over this quantile of the training span.
        stale_after_s: a quote older than this is stale.
        gap_after_s: no message for longer than this is a gap.
        label_max_age_s: no label where its span holds an older quote.
        late_after_s: a message older than its product's newest by more is late.
        retrain_every: partitions from one training of a run over a range to the next.
        retrain_phase: which ones these are: partitions counted from the epoch, modulo `retrain_every`.
        splits: how a labelled span is cut.
    """

    name: str
    grid: str
    bar_interval_s: int
    partition_s: int
    quotes: bool
    windows_bars: tuple[int, ...]
    ewma_half_lives_bars: tuple[int, ...]
    horizon_bars: int
    target: str
    quantile: float
    stale_after_s: float
    gap_after_s: float
    label_max_age_s: float
    late_after_s: float
    retrain_every: int
    retrain_phase: int
    splits: SplitSpec

    @property
    def bar_ns(self) -> int:
        """Length of a bar in nanoseconds."""
        return self.bar_interval_s * NS

    @property
    def partition_ns(self) -> int:
        """Length of a partition in nanoseconds."""
        return self.partition_s * NS

    @property
    def horizon_ns(self) -> int:
        """H in nanoseconds."""
        return self.horizon_bars * self.bar_ns


@dataclass(frozen=True)
class ModelSpec(_Hashable):
    """Model parameters and the seed of everything random."""

    enabled: tuple[str, ...]
    seed: int
    logreg_c: float
    xgboost_trees: int
    xgboost_depth: int
    xgboost_learning_rate: float
    xgboost_min_child_weight: float
    bootstrap_resamples: int
    alert_budget_per_hour: float
