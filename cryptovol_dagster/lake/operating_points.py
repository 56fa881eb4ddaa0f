"""Where a model flags: the operating points that its evaluation chose on validation rows."""

from __future__ import annotations

import json

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.lake.files import Lake


def flag_threshold(lake: Lake, spec: TimescaleSpec, as_of: str, model: str) -> float | None:
    """Return the threshold with the highest F1 of a model; None where none is stored.

    Args:
        lake: where evaluations are.
        spec: the timescale.
        as_of: the partition as of which the model was trained.
        model: its kind.

    Raises:
        LakeError: the evaluation cannot be read.
    """
    asset = spec.asset("model_evaluation")
    if not lake.exists(asset, as_of, "json"):
        return None
    report = json.loads(lake.read_bytes(asset, as_of, "json"))
    points = report["models"].get(model, {}).get("operating_points", {})
    return (points.get("max_f1") or {}).get("threshold")
