"""Specifications of computations: frozen and hashable, independent of where the data came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

NS = 1_000_000_000
HOUR_S, DAY_S = 3_600, 86_400
#: Targets: volatility from close to close, or after Garman and Klass.
RV, GK = "rv", "gk"
#: Products whose means the cross features are, where the settings name no others.
DEFAULT_REFERENCE_SET = ("BTC-USD", "ETH-USD")
#: Assets that the horizons on one grid share.
_GRID_ASSETS = ("candles", "bars", "features")
#: Timescales.
SECONDS, MINUTES = "seconds", "minutes"


class _Hashable:
    def hash(self) -> str:
        """Return a short stable hash of every field, for names of versions."""
        return hashlib.sha256(json.dumps(self._hashed(), sort_keys=True).encode()).hexdigest()[:12]

    def _hashed(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload] - subclasses are dataclasses


@dataclass(frozen=True)
class SplitSpec(_Hashable):
    """Split of a labelled span; all spans in seconds of time, never in rows."""

    train_span_s: int
    test_span_s: int
    max_test_share: float
    validation_share: float
    embargo_s: int


@dataclass(frozen=True)
class TimescaleSpec(_Hashable):
    """One chain: a grid of bars and features, and on it one horizon to learn.

    Attributes:
        name: of the chain; prefix of its labels, splits, models, evaluation and champion ("minutes_h5").
        grid: of the timescale; prefix of bars and features, which its horizons share ("minutes").
        bar_interval_s: length of a bar.
        partition_s: length of a partition: an hour or a day.
        quotes: whether bars are built from quotes; candles have no quotes and no quote features.
        windows_bars: feature windows.
        ewma_half_lives_bars: of the EWMA features.
        horizon_bars: H; a label covers (t, t + H].
        target: the volatility to predict: `RV` (close to close) or `GK` (Garman–Klass).
        quantile: a spike is at or above this quantile of the training span.
        stale_after_s: a quote older than this is stale.
        gap_after_s: no message for longer than this is a gap.
        label_max_age_s: there is no label where its span contains an older quote.
        late_after_s: a message older than its product's newest by more is late.
        retrain_every: number of partitions between two trainings of a run over a range.
        retrain_phase: which partitions train: their number since the epoch, modulo `retrain_every`.
        splits: how a labelled span is split.
        reference_set: products whose means the cross features are, in the order in which they are summed.
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
    reference_set: tuple[str, ...] = DEFAULT_REFERENCE_SET

    def _hashed(self) -> dict[str, Any]:
        # The version of the features names the set (`catalogue.features_version`); own features have none.
        return {name: value for name, value in asdict(self).items() if name != "reference_set"}

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
        """Return the name of an asset of the chain as users write it, which is also its folder in the lake.

        Horizons on one grid share candles, bars and features: ``minutes/bars``, but ``minutes_h5/labels``.

        Examples:
            >>> from cryptovol_dagster.core.samples import SPEC
            >>> from dataclasses import replace
            >>> chain = replace(SPEC, name="minutes_h5", grid="minutes")
            >>> chain.asset("bars"), chain.asset("labels")
            ('minutes/bars', 'minutes_h5/labels')
        """
        return f"{self.grid if name in _GRID_ASSETS else self.name}/{name}"

    @property
    def source_assets(self) -> tuple[str, ...]:
        """Sources of the chain's bars, in order: the feed's gaps and ticks, or candles."""
        return ("gap_ledger", "ticks") if self.quotes else (self.asset("candles"),)

    @property
    def market_assets(self) -> tuple[str, ...]:
        """The chain's assets from bars to labels, and the drift numbers, in order."""
        return tuple(map(self.asset, ("bars", "features", "labels", "drift_scores")))

    def training_assets(self, models: Sequence[str]) -> tuple[str, ...]:
        """Return the chain's assets from splits to champion, in order.

        Args:
            models: names of the models that are trained.

        Examples:
            >>> from cryptovol_dagster.core.samples import SPEC
            >>> SPEC.training_assets(["ewma"])
            ('sample/splits', 'sample/model_ewma', 'sample/model_evaluation', 'sample/champion')
        """
        names = ("splits", *(f"model_{model}" for model in models), "model_evaluation", "champion")
        return tuple(map(self.asset, names))


def market_assets(specs: Iterable[TimescaleSpec]) -> tuple[str, ...]:
    """Return the assets of a timescale's chains up to labels and drift scores, in order.

    Args:
        specs: the chains on one grid; shared assets are listed once.
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
    """Rule of the comparison of a challenger with the champion.

    Attributes:
        first_look_s: length of the hold-out at the first interim analysis.
        growth: the next analysis is due when the hold-out is this many times as long as at the previous one.
        measured_for_s: length of the hold-out at which an undecided challenger is dropped; at least three
            tests long, so that a challenger whose first hold-out is a month gets a second analysis.
        error_rate: probability of promoting a model that is no better, over `error_window_s`, if the bounds
            were exact. Half of the promised 5 %: with few and unequal blocks the bounds are not exact.
        error_window_s: the time that `error_rate` refers to.
        most_per_look: highest level of a single analysis.
        min_gain: gain of average precision below which the champion stays, however certain the gain is: two
            seeds of one learner differ by as much.
        reject_level: level at which a challenger counts as worse.
        least_block_s: shortest bootstrap block; a block is a day where the hold-out has ten days or more.
        blocks: number of blocks of a hold-out, where that gives blocks between these two lengths.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        brier_tolerance: by which share the Brier score of a promoted model may be higher.
        min_positives: fewest positives of a hold-out that suffices.
        min_positive_blocks: fewest blocks with a positive of a hold-out that suffices.
        champion_max_age_s: a champion trained on no newer data than this is compared with the fallback.
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
