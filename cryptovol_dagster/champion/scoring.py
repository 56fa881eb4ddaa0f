"""Rows scored for a decision: a hold-out of any length, piece by piece, by models trained at different times.

Belongs here: which rows, and putting them to the models. Does not belong here: what follows from the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cryptovol_dagster.core.learning.dataset import NoRows
from cryptovol_dagster.core.learning.labels import is_spike
from cryptovol_dagster.core.metrics import ranking as metrics
from cryptovol_dagster.core.metrics.scored_rows import HoldOut
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.lake import datasets
from cryptovol_dagster.lake.files import Lake

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cryptovol_dagster.core.learning.dataset import Dataset, Problem
    from cryptovol_dagster.core.models import Model

#: Rows are read for so many partitions at a time: a day of hours, a month of days.
_PIECE = 24


def why_unscorable(model: Model, columns: tuple[str, ...]) -> str:
    """Say why a model cannot read rows of these columns; empty where it can.

    Args:
        model: trained earlier.
        columns: names of the features there are now.
    """
    meta = model.meta
    lacking = [name for name in meta.features if name not in columns and name not in meta.optional]
    return f"the features lack {', '.join(lacking)}" if lacking else ""


def score(model: Model, features: pd.DataFrame) -> NDArray[np.float64]:
    """Put rows to a model that may know more, or fewer, optional columns than they have.

    Raises:
        ModelError: a column the model needs is missing, or holds a value it must not.
    """
    inputs = list(model.meta.inputs)
    return model.predict_proba(
        features if list(features.columns) == inputs else features.reindex(columns=inputs)
    )


def validation_precisions(problem: Problem, models: Mapping[str, Model]) -> dict[str, float | None]:
    """Give each model's average precision on the validation rows; None where those hold one class only."""
    rows, y = problem.part(problem.split.validation)
    if not y.any() or y.all():
        return dict.fromkeys(models)
    return {name: metrics.average_precision(y, score(model, rows.features)) for name, model in models.items()}


def test_rows(problem: Problem, models: Mapping[str, Model]) -> HoldOut:
    """Score the test rows of a problem, by its own labels."""
    rows, y = problem.part(problem.split.test)
    scores = {name: score(model, rows.features) for name, model in models.items()}
    return HoldOut(rows.t_ns, rows.bar_ns, y, scores)


def hold_out(
    lake: Lake,
    spec: TimescaleSpec,
    start_ns: int,
    end_ns: int,
    thresholds: Mapping[str, float],
    models: Mapping[str, Model],
) -> HoldOut:
    """Score the labelled rows with decision times in ``[start_ns, end_ns)``, a piece at a time.

    Args:
        lake: holds features and labels.
        spec: the timescale.
        start_ns: neither model learned from it, nor from what follows.
        end_ns: exclusive.
        thresholds: τ per product; products without one are left out, nothing says what a spike of theirs is.
        models: by the names their scores get.

    Raises:
        LakeError: a file cannot be read.
        ChainError: some partitions were made under another configuration.
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
    return HoldOut(
        np.concatenate(times),
        spec.bar_ns,
        np.concatenate(spikes),
        {name: np.concatenate(found) for name, found in scores.items()},
    )


def _pieces(lake: Lake, spec: TimescaleSpec, start_ns: int, end_ns: int) -> Iterator[Dataset]:
    """Cut the rows of a span into pieces, in order of time, none twice.

    Rows are labelled by the partition in which their horizon ends, which may be a later one: each piece is
    read with the partition before it, and what came with the piece before is cut off.
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
