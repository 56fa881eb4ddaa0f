"""What a computation was asked to do: frozen, hashable, free of where the numbers came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

NS = 1_000_000_000
HOUR_S, DAY_S = 3_600, 86_400
#: Targets: volatility from close to close, or after Garman and Klass.
RV, GK = "rv", "gk"
#: Assets that the horizons on one grid share.
_GRID_ASSETS = ("candles", "bars", "features")
#: Timescales.
SECONDS, MINUTES = "seconds", "minutes"


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

    @property
    def horizon_s(self) -> int:
        """H in seconds."""
        return self.horizon_bars * self.bar_interval_s

    def asset(self, name: str) -> str:
        """Name an asset of the chain as users write it, which is also its folder in the lake.

        Horizons on one grid share candles, bars and features: ``minutes/bars``, but ``minutes_h5/labels``.
        """
        return f"{self.grid if name in _GRID_ASSETS else self.name}/{name}"

    @property
    def source_assets(self) -> tuple[str, ...]:
        """What the chain's bars are computed from, in order: the feed's gaps and ticks, or candles."""
        return ("gap_ledger", "ticks") if self.quotes else (self.asset("candles"),)

    @property
    def market_assets(self) -> tuple[str, ...]:
        """The chain's assets from bars to labels, and the drift numbers, in order."""
        return tuple(map(self.asset, ("bars", "features", "labels", "drift_scores")))

    def training_assets(self, models: Sequence[str]) -> tuple[str, ...]:
        """The chain's assets from splits to champion, in order.

        Args:
            models: names of the models that are trained.
        """
        names = ("splits", *(f"model_{model}" for model in models), "model_evaluation", "champion")
        return tuple(map(self.asset, names))


def market_assets(specs: Iterable[TimescaleSpec]) -> tuple[str, ...]:
    """Name the assets of a timescale's chains up to labels and drift scores, in order.

    Args:
        specs: the chains on one grid; what they share is named once.
    """
    names = (name for spec in specs for name in (*spec.source_assets, *spec.market_assets))
    return tuple(dict.fromkeys(names))


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


@dataclass(frozen=True)
class GateSpec(_Hashable):
    """How a challenger is compared with the champion.

    Attributes:
        first_look_s: length of the hold-out before the first interim analysis.
        growth: the next one is due when the hold-out is this many times as long as at the one before.
        measured_for_s: hold-out after which an undecided challenger is let go; at least three tests long, so
            that one whose first hold-out is a month gets a second analysis.
        error_rate: chance of promoting a model that is no better, over `error_window_s`, if the bounds were
            exact. Half of the 5 % that is promised: with few and unlike blocks they are not quite.
        error_window_s: see there.
        most_per_look: level of a single analysis, at most.
        min_gain: average precision below which a gain, however sure, is not worth another champion: that much
            two seeds of one learner differ.
        reject_level: level at which a challenger counts as surely worse.
        least_block_s: length of a bootstrap block, at least; a day where the hold-out has ten or more.
        blocks: into how many a hold-out is cut in between.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        brier_tolerance: how much worse, as a share, a promoted model's Brier score may be.
        min_positives: positives without which a hold-out says nothing.
        min_positive_blocks: blocks with a positive without which it says nothing.
        champion_max_age_s: a champion that has learned nothing for longer is compared with the fallback.
    """

    first_look_s: int = DAY_S
    growth: float = 2.0
    measured_for_s: int = 28 * DAY_S
    error_rate: float = 0.025
    error_window_s: int = 30 * DAY_S
    most_per_look: float = 0.025
    min_gain: float = 0.005
    reject_level: float = 0.025
    least_block_s: int = 7_200
    blocks: int = 12
    resamples: int = 500
    seed: int = 7
    brier_tolerance: float = 0.02
    min_positives: int = 30
    min_positive_blocks: int = 10
    champion_max_age_s: float = 7 * DAY_S
