"""What a computation was asked to do: frozen, hashable, free of where the numbers came from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

NS = 1_000_000_000


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
    """One timescale of the chain: bar length, feature windows, horizon and the label's quantile."""

    name: str
    bar_interval_s: int
    windows_bars: tuple[int, ...]
    ewma_half_lives_bars: tuple[int, ...]
    horizon_bars: int
    quantile: float
    stale_after_s: float
    gap_after_s: float
    label_max_age_s: float
    late_after_s: float
    splits: SplitSpec

    @property
    def bar_ns(self) -> int:
        """Length of a bar in nanoseconds."""
        return self.bar_interval_s * NS

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
