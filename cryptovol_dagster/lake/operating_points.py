"""Where a model flags: the operating point and episode rule that its evaluation chose on validation."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cryptovol_dagster.core.evaluation.report import read_episode_rule
from cryptovol_dagster.core.metrics.episodes import EpisodeRule
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.lake.files import Lake


@dataclass(frozen=True)
class Flagging:
    """When a probability is flagged, and when an episode opens; None where no evaluation says so.

    Attributes:
        threshold: of the operating point with the highest F1.
        episode_rule: when episodes open and close.
    """

    threshold: float | None = None
    episode_rule: EpisodeRule | None = None


def flagging_of(lake: Lake, spec: TimescaleSpec, as_of: str, model: str) -> Flagging:
    """Return where a model flags, according to the evaluation as of its training.

    Args:
        lake: where evaluations are.
        spec: the timescale.
        as_of: the partition as of which the model was trained.
        model: its kind.

    Raises:
        LakeError: the evaluation cannot be read.
        EvaluationError: its episode rule cannot be read.
    """
    asset = spec.asset("model_evaluation")
    if not lake.exists(asset, as_of, "json"):
        return Flagging()
    report = json.loads(lake.read_bytes(asset, as_of, "json"))
    points = report["models"].get(model, {}).get("operating_points", {})
    return Flagging((points.get("max_f1") or {}).get("threshold"), read_episode_rule(report, model))
