"""Stored artefacts of one as-of partition as a case of the leak audit.

Belongs here: reading them, and recomputing from the bars what they are compared with. Does not belong
here: any judgement (`core/leaks/audit.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from cryptovol_dagster.core.features.catalogue import lookback_bars
from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.leaks.detectors import Artefacts, Case, read_claims
from cryptovol_dagster.core.leaks.witnesses import scale_prices
from cryptovol_dagster.core.learning.dataset import Dataset, join_dataset
from cryptovol_dagster.core.learning.labels import forward_volatility
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.lake import look_back, plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.market import read_bars
from cryptovol_dagster.lake.models import read_models


def stored_case(lake: Lake, spec: TimescaleSpec, models: Sequence[str], partition_key: str) -> Case:
    """Read plan, rows, models and evaluation of a partition; compute the rows of its test again from bars.

    Args:
        lake: where they are.
        spec: the timescale.
        models: models to examine, as far as they were evaluated.
        partition_key: the as-of partition.

    Raises:
        LakeError: splits, evaluation or bars were never written for it.
        ChainError: nothing was trained as of it, or the artefacts do not match.
        LearningError: the test has no row that can be computed again.
    """
    plan = plans.read_plan(lake, spec, partition_key)
    problem = plans.read_problem(lake, spec, plan)
    claims = read_claims(json.loads(lake.read_bytes(spec.asset("model_evaluation"), partition_key, "json")))
    fitted = read_models(lake, spec, plan, [name for name in models if name in claims])
    start_ns, end_ns = look_back.window_back(partition_key, 0)
    wanted_ns = problem.split.test.start_ns - lookback_bars(spec) * spec.bar_ns
    back = max(0, -(-(start_ns - wanted_ns) // (end_ns - start_ns)))
    bars = read_bars(lake, spec, partition_key, back)
    # Where bars begin later than requested there are no earlier ones, and the features began there too.
    from_ns = problem.split.test.start_ns if bars.start_ns <= wanted_ns else bars.start_ns
    return Case(
        bars=bars,
        timescale=spec,
        artefacts=Artefacts(problem, fitted, claims),
        honest=_rows(bars, spec, from_ns),
        scaled=_rows(scale_prices(bars), spec, from_ns),
    )


def _rows(bars: BarGrid, spec: TimescaleSpec, from_ns: int) -> Dataset:
    features = compute_features(bars, spec, from_ns=from_ns).to_frame()
    return join_dataset(features, forward_volatility(bars, spec, from_ns=from_ns).to_frame(), spec)
