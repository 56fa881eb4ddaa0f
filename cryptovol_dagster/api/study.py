"""What a training learns from, with the numbers and pictures that a first look asks for.

Belongs here: choosing rows as a training does, and showing them. Does not belong here: any formula; numbers
and pictures are core's (`core/exploration`, `core/leaks`).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from cryptovol_dagster.api.errors import ApiError
from cryptovol_dagster.chains import model_spec, models_of
from cryptovol_dagster.core.exploration import numbers, pictures
from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.leaks.ladder import Rung, leak_ladder
from cryptovol_dagster.core.learning.errors import LearningError
from cryptovol_dagster.core.metrics.bootstrap import block_length_s
from cryptovol_dagster.core.specs import HOUR_S, NS, TimescaleSpec
from cryptovol_dagster.core.times import DAY_NS, iso_utc
from cryptovol_dagster.lake import datasets, look_back, market, plans
from cryptovol_dagster.lake.files import Lake
from ingestor.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cryptovol_dagster.core.learning.dataset import Dataset, Problem
    from cryptovol_dagster.core.market.bars import BarGrid


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows when a cell ends with it.

    Attributes:
        png: the file's bytes.
        alt: what it shows, in words.
    """

    png: bytes
    alt: str

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        return {"image/png": b64encode(self.png).decode()}, {"image/png": {"alt": self.alt}}


@dataclass(frozen=True)
class Study:
    """Bars, rows and split that a training as of a partition learns from; made by `Market.study`.

    Attributes:
        settings: the configuration.
        spec: the chain.
        as_of: the hour or day at whose end the training stands.
    """

    settings: Settings
    spec: TimescaleSpec
    as_of: str

    @property
    def _lake(self) -> Lake:
        return Lake(self.settings.storage.lake_dir)

    @property
    def horizon_s(self) -> int:
        """H in seconds."""
        return self.spec.horizon_s

    @cached_property
    def bars(self) -> BarGrid:
        """The unbroken run of bars up to the end of the partition, at most as long as training and test."""
        return market.read_bars(self._lake, self.spec, self.as_of, look_back.training_look_back(self.spec))

    @cached_property
    def rows(self) -> Dataset:
        """The rows that have both features and a label.

        Raises:
            LearningError: there is none.
            ChainError: some partitions were computed by another version.
        """
        return datasets.read_dataset(self._lake, self.spec, self.as_of)

    @cached_property
    def plan(self) -> plans.SplitPlan:
        """Split of the rows; `plan.trainable` is whether models are trained, `plan.reason` why not."""
        return plans.plan_split(self._lake, self.spec, self.as_of)

    @cached_property
    def problem(self) -> Problem:
        """Rows, split and thresholds.

        Raises:
            ChainError: nothing can be trained; `plan.reason` says why.
        """
        return plans.read_problem(self._lake, self.spec, self.plan)

    def summary(self) -> str:
        """Return the span, the products and how many rows there are, as Markdown."""
        bars, words = self.bars, {f"feature_reason_{r.value}": f"feature {r.name.lower()}" for r in Reason}
        left_out = [f"{words.get(why, why)} {count:,}" for why, count in self.rows.dropped.items()]
        return (
            f"**{iso_utc(bars.start_ns)} … {iso_utc(bars.end_ns)}**: "
            f"{(bars.end_ns - bars.start_ns) / (HOUR_S * NS):g} hours, {', '.join(bars.products)}. Rows with "
            f"features *and* label: **{len(self.rows):,}**; left out: {', '.join(left_out) or 'none'}."
        )

    def coverage(self) -> pd.DataFrame:
        """Count bars and messages of each product, and the share of bars with each fault."""
        return numbers.coverage(self.bars)

    def thresholds(self, quantiles: Sequence[float]) -> pd.DataFrame:
        """Compute what other quantiles of the training rows would make of τ, base rates and episodes."""
        return numbers.threshold_choices(self.problem, self.spec, quantiles)

    @cached_property
    def relations(self) -> pd.DataFrame:
        """Relate each feature to the label, on training rows only; the strongest first."""
        return numbers.label_relations(*self._train)

    @cached_property
    def _train(self) -> tuple[Dataset, NDArray[np.bool_]]:
        return self.problem.part(self.problem.split.train)

    @property
    def strongest(self) -> list[str]:
        """The feature of each family that is related to the label most closely, the strongest first."""
        families = self.relations.groupby(lambda name: name.rstrip("0123456789_"), sort=False).head(1)
        return list(families.index)

    @cached_property
    def ladder(self) -> tuple[Rung, ...]:
        """Return the results of the honest pipeline, and with each known leak; on at most a day of bars.

        Raises:
            ApiError: the day cannot be learned from.
        """
        newest = self.bars.slice(self._ladder_start_ns, self.bars.end_ns)
        try:
            return leak_ladder(newest, self.spec, model_spec(models_of(self.settings, self.spec)))
        except LearningError as error:
            raise ApiError(f"No ladder: {error}") from error

    @property
    def _ladder_start_ns(self) -> int:
        return max(self.bars.start_ns, self.bars.end_ns - DAY_NS)

    def ladder_table(self) -> pd.DataFrame:
        """Return a row a rung of `ladder`: what it reaches, on how many rows, and what is wrong with it.

        Raises:
            ApiError: the day cannot be learned from.
        """
        return pd.DataFrame(
            {
                "average precision": [rung.average_precision for rung in self.ladder],
                "base rate": [rung.base_rate for rung in self.ladder],
                "lift": [rung.lift for rung in self.ladder],
                "F1": [rung.f1 for rung in self.ladder],
                "train rows": [rung.train_rows for rung in self.ladder],
                "test rows": [rung.test_rows for rung in self.ladder],
                "what is wrong": [rung.fault or "nothing" for rung in self.ladder],
            },
            index=pd.Index([rung.name for rung in self.ladder]),
        )

    def plot_quotes(self) -> Picture:
        """Draw how returns, spreads and quote ages are distributed."""
        return Picture(pictures.plot_quotes(self.bars), "distributions of returns, spreads and quote ages")

    def plot_volatility_by_window(self) -> Picture:
        """Draw how realised volatility is distributed, for each window of the features."""
        png = pictures.plot_volatility_by_window(self.rows, self.spec.windows_bars)
        return Picture(png, "realised volatility by window")

    def plot_memory(self) -> Picture:
        """Draw autocorrelations of |r|, r² and ln RV, and the block length of intervals."""
        window = min(self.spec.windows_bars, key=lambda bars: abs(bars - self.spec.horizon_bars))
        block_s = block_length_s(self.horizon_s, self.spec.splits.test_span_s)
        png = pictures.plot_memory(self.bars, self.rows, window, block_s)
        return Picture(png, "autocorrelations of |r|, r² and ln RV")

    def plot_clustering(self) -> Picture:
        """Draw mid, moves and volatility around the wildest moment."""
        png = pictures.plot_clustering(self.bars, self.rows)
        return Picture(png, "mid, moves and volatility around the wildest moment")

    def plot_threshold(self) -> Picture:
        """Draw percentiles of volatility in each part of the split, and the threshold."""
        return Picture(pictures.plot_threshold(self.problem), "percentiles of volatility and the threshold")

    def plot_base_rates(self, thresholds: pd.DataFrame) -> Picture:
        """Draw base rates of training and test over the thresholds of `thresholds`."""
        png = pictures.plot_base_rates(thresholds)
        return Picture(png, "base rates of training and test by threshold")

    def plot_relations(self) -> Picture:
        """Draw the strongest rank correlations of features with the label, on training rows."""
        train, _ = self._train
        png = pictures.plot_relations(self.relations, f"{len(train):,} training rows, {train.describe()}")
        return Picture(png, "rank correlations of features with the label")

    def plot_spike_rates(self, features: Sequence[str]) -> Picture:
        """Draw the share of spikes in tenths of some features, on training rows."""
        png = pictures.plot_spike_rates(*self._train, features)
        return Picture(png, "share of spikes in tenths of the best features")

    def plot_ladder(self) -> Picture:
        """Draw the average precision of each rung beside its base rate."""
        start, end = iso_utc(self._ladder_start_ns), iso_utc(self.bars.end_ns)
        on = f"{start} … {end}, H = {self.horizon_s} s, {self.ladder[0].test_rows:,} test rows"
        png = pictures.plot_leak_ladder(self.ladder, on)
        return Picture(png, "average precision of each rung beside its base rate")
