"""Score the stored rows that a decision about the champion needs, with models of different times.

Belongs here: the rows, and the models that score them. Does not belong here: conclusions from the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cryptovol_dagster.core.features.catalogue import feature_names
from cryptovol_dagster.core.learning.dataset import NoRows
from cryptovol_dagster.core.learning.labels import is_spike
from cryptovol_dagster.core.metrics.ranking import average_precision
from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.models import Model, load_model
from cryptovol_dagster.core.models.base import why_unscorable
from cryptovol_dagster.core.models.kinds import FALLBACK, REFERENCES
from cryptovol_dagster.core.promotion.decision import Champion, Contest
from cryptovol_dagster.core.promotion.measured import Measured
from cryptovol_dagster.core.promotion.rule import THE_CHALLENGER, THE_CHAMPION
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.lake import datasets, decisions, plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.models import model_asset, read_models
from cryptovol_dagster.lake.plans import SplitPlan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cryptovol_dagster.core.learning.dataset import Dataset, Problem

#: Rows are read for so many partitions at a time: a day of hours, a month of days.
_PIECE = 24


@dataclass(frozen=True)
class StoredRows:
    """`ContestRows` of a partition, from the lake. Each method reads its models and rows when it is called.

    Attributes:
        lake: rows, models and the copies of champion and challenger.
        spec: the timescale.
        plan: of the partition; trainable.
        measured: the partition's evaluation.

    The methods raise:
        LakeError: a file is missing or cannot be read.
        ChainError: rows or a model were materialized under another configuration or plan.
        ModelError: a file is not a model file, or a model refuses the rows.
    """

    lake: Lake
    spec: TimescaleSpec
    plan: SplitPlan
    measured: Measured

    def why_unscorable(self, champion: Champion) -> str:
        """Return why the champion's file cannot score the present features; empty where it can."""
        return self._why(self._read_champion(champion))

    def why_challenger_unscorable(self, contest: Contest) -> str:
        """Return why the challenger's file cannot score the present features; empty where it can."""
        return self._why(self._read_challenger(contest))

    def validation(self) -> dict[str, float | None]:
        """Return the candidates' average precision on the plan's validation rows."""
        problem = plans.read_problem(self.lake, self.spec, self.plan)
        candidates = read_models(self.lake, self.spec, self.plan, self.measured.candidates)
        return validation_precisions(problem, candidates)

    def hold_out(self, champion: Champion, contest: Contest) -> ScoredRows:
        """Return the hold-out, labelled by the challenger's thresholds, scored by both and `REFERENCES`."""
        challenger = self._read_challenger(contest)
        models = self._read_references(contest.challenger.as_of) | {
            THE_CHAMPION: self._read_champion(champion),
            THE_CHALLENGER: challenger,
        }
        span = contest.start_ns, self.measured.end_ns
        return score_span(self.lake, self.spec, *span, challenger.meta.thresholds, models)

    def matured(self, champion: Champion) -> ScoredRows:
        """Return the plan's test rows, scored by the champion and, if it was measured, `FALLBACK`."""
        models = {THE_CHAMPION: self._read_champion(champion)}
        if FALLBACK in self.measured.trained:
            models |= read_models(self.lake, self.spec, self.plan, [FALLBACK])
        return score_test(plans.read_problem(self.lake, self.spec, self.plan), models)

    def _why(self, model: Model) -> str:
        return why_unscorable(model, feature_names(self.spec), self.spec.reference_set)

    def _read_challenger(self, contest: Contest) -> Model:
        return load_model(decisions.read_model_file(self.lake, self.spec, contest.challenger))

    def _read_champion(self, champion: Champion) -> Model:
        return load_model(decisions.read_champion_file(self.lake, self.spec, champion))

    def _read_references(self, as_of: str) -> dict[str, Model]:
        """Read the plain models that were trained with a challenger; one that was not is left out."""
        return {
            name: load_model(self.lake.read_bytes(model_asset(self.spec, name), as_of, "zip"))
            for name in REFERENCES
            if self.lake.exists(model_asset(self.spec, name), as_of, "zip")
        }


def score(model: Model, features: pd.DataFrame) -> NDArray[np.float64]:
    """Score rows with a model that may have more, or fewer, optional columns than they have.

    Raises:
        ModelError: a column the model needs is missing, or contains a value that is not allowed.
    """
    inputs = list(model.meta.inputs)
    return model.predict_proba(
        features if list(features.columns) == inputs else features.reindex(columns=inputs)
    )


def validation_precisions(problem: Problem, models: Mapping[str, Model]) -> dict[str, float | None]:
    """Return each model's average precision on the validation rows; None where those hold one class only."""
    rows, y = problem.part(problem.split.validation)
    if not y.any() or y.all():
        return dict.fromkeys(models)
    return {name: average_precision(y, score(model, rows.features)) for name, model in models.items()}


def score_test(problem: Problem, models: Mapping[str, Model]) -> ScoredRows:
    """Score the test rows of a problem, with its own labels."""
    rows, y = problem.part(problem.split.test)
    scores = {name: score(model, rows.features) for name, model in models.items()}
    return ScoredRows(rows.t_ns, rows.bar_ns, y, scores)


def score_span(
    lake: Lake,
    spec: TimescaleSpec,
    start_ns: int,
    end_ns: int,
    thresholds: Mapping[str, float],
    models: Mapping[str, Model],
) -> ScoredRows:
    """Score the labelled rows with decision times in ``[start_ns, end_ns)``, a piece at a time.

    Args:
        lake: the lake with features and labels.
        spec: the timescale.
        start_ns: the first decision time.
        end_ns: exclusive.
        thresholds: τ per product; products without one are left out, as nothing defines their spikes.
        models: by the names of their scores.

    Raises:
        LakeError: a file cannot be read.
        ChainError: some partitions were materialized under another configuration.
        ModelError: a model refuses the rows.
    """
    times, spikes = [np.empty(0, np.int64)], [np.empty(0, bool)]
    scores = {name: [np.empty(0)] for name in models}
    for rows in _pieces(lake, spec, start_ns, end_ns):
        known = rows.rows(np.isin(rows.product.astype(str), list(thresholds)))
        times.append(known.t_ns)
        spikes.append(is_spike(known.sigma, known.product, dict(thresholds)))
        for name, model in models.items():
            scores[name].append(score(model, known.features))
    return ScoredRows(
        np.concatenate(times),
        spec.bar_ns,
        np.concatenate(spikes),
        {name: np.concatenate(found) for name, found in scores.items()},
    )


def _pieces(lake: Lake, spec: TimescaleSpec, start_ns: int, end_ns: int) -> Iterator[Dataset]:
    """Yield the rows of a span in pieces, in order of time, none twice.

    Rows are labelled by the partition in which their horizon ends, which may be a later one. So each piece is
    read with the partition before it, and rows that came with the previous piece are cut off.
    """
    length_ns = spec.partition_ns
    first_ns = start_ns // length_ns * length_ns
    for piece_ns in range(first_ns, end_ns + spec.horizon_ns, _PIECE * length_ns):
        stop_ns = min(piece_ns + _PIECE * length_ns, end_ns + spec.horizon_ns)
        try:
            rows = datasets.read_span(lake, spec, piece_ns - length_ns, stop_ns)
        except NoRows:
            continue
        found = rows.slice(*np.searchsorted(rows.t_ns, [start_ns, end_ns]))
        if len(found):
            start_ns = int(found.t_ns[-1]) + 1
            yield found
