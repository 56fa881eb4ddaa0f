"""How a partition's labelled span is split, stored beside its models."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from cryptovol_dagster.core.evaluation.sufficiency import assess_training
from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.learning.dataset import Problem, pose_problem
from cryptovol_dagster.core.learning.errors import LearningError
from cryptovol_dagster.core.learning.splits import Split, split_times
from cryptovol_dagster.core.specs import HOUR_S, TimescaleSpec
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.lake.datasets import ChainError, dataset_and_hash
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.market import hash_bytes

SPLITS_SCHEMA_VERSION = 1
#: Key of the sufficiency assessment in `SplitPlan.counts`.
SUFFICIENCY = "sufficiency"
#: Status of a plan.
TRAINABLE, NOT_TRAINABLE, CARRIED = "trainable", "not_trainable", "carried"


@dataclass(frozen=True)
class SplitPlan:
    """Record of the `splits` asset for an as-of partition: the split and its data, or why there is none.

    Attributes:
        as_of: the partition.
        reason: why nothing is trained; empty where it is.
        split: the ranges; None where nothing is trained.
        thresholds: τ per product, from training rows.
        counts: rows and positives of each part, rows that the join left out, by reason, the features that are
            almost never known in training, and the sufficiency of the training rows.
        data_hash: of every row of the dataset.
        feature_hash: of the feature set.
        carried_from: between two trainings of a run over a range, the hour whose models are carried over;
            empty when no earlier hour has any. None where training was tried.
    """

    as_of: str
    reason: str
    split: Split | None
    thresholds: dict[str, float]
    counts: dict[str, Any]
    data_hash: str
    feature_hash: str
    carried_from: str | None = None

    @property
    def trainable(self) -> bool:
        """Whether models are trained as of this partition."""
        return self.split is not None

    @property
    def problem_hash(self) -> str:
        """Digest of the whole plan: rows, cut, thresholds and features, and nothing that is only shown."""
        counts = {name: found for name, found in self.counts.items() if name != SUFFICIENCY}
        return hash_bytes(replace(self, counts=counts).to_json())

    @property
    def status(self) -> str:
        """``trainable``, ``not_trainable``, or ``carried``: models of an earlier hour are carried over."""
        if self.carried_from is not None:
            return CARRIED
        return TRAINABLE if self.trainable else NOT_TRAINABLE

    def to_json(self) -> bytes:
        """Write the stored form."""
        body = {
            "schema_version": SPLITS_SCHEMA_VERSION,
            "as_of": self.as_of,
            "status": self.status,
            "reason": self.reason,
            "split": self.split.to_dict() if self.split else None,
            "thresholds": self.thresholds,
            "counts": self.counts,
            "data_hash": self.data_hash,
            "feature_hash": self.feature_hash,
        }
        if self.carried_from is not None:  # only there, so that earlier plans stay the same
            body["carried_from"] = self.carried_from
        return json.dumps(body, indent=2, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> SplitPlan:
        """Read the stored form.

        Raises:
            ChainError: the bytes are not a plan of this version.
        """
        try:
            body = json.loads(data)
            if body["schema_version"] != SPLITS_SCHEMA_VERSION:
                raise ChainError(f"splits of schema version {body['schema_version']}: re-materialize them")
            split = Split.from_dict(body["split"]) if body["split"] else None
            names = ("as_of", "reason", "thresholds", "counts", "data_hash", "feature_hash")
            carried_from = body.get("carried_from")
            return cls(split=split, carried_from=carried_from, **{name: body[name] for name in names})
        except (ValueError, KeyError, TypeError) as error:
            raise ChainError(f"splits cannot be read: {error!r}") from error


def plan_split(lake: Lake, spec: TimescaleSpec, partition_key: str) -> SplitPlan:
    """Decide how the span that ends with a partition is split, or why nothing can be trained on it.

    Raises:
        LakeError: the as-of partition has no features or no labels: an error, not a lack of data.
    """
    counts: dict[str, Any] = {}
    digest = ""
    try:
        dataset, digest = dataset_and_hash(lake, spec, partition_key)
        counts["left_out"] = dict(dataset.dropped)
        split = split_times(int(dataset.t_ns.min()), int(dataset.t_ns.max()) + spec.bar_ns, spec)
        problem = pose_problem(dataset, split, spec)
    except LearningError as error:
        return SplitPlan(partition_key, str(error), None, {}, counts, digest, feature_hash(spec))
    counts["left_out"] = dict(problem.dataset.dropped)
    counts["features_left_out"] = list(problem.left_out)
    for name in ("train", "validation", "test"):
        rows, y = problem.part(getattr(split, name))
        counts[name] = {"rows": len(rows), "positives": int(y.sum())}
    counts[SUFFICIENCY] = assess_training(problem).to_dict()
    return SplitPlan(partition_key, "", split, problem.thresholds, counts, digest, feature_hash(spec))


def trains_at(spec: TimescaleSpec, partition_key: str) -> bool:
    """Return whether a run over a range trains as of a partition; it always trains as of its last one.

    Partitions are counted from the epoch, so that every range that contains this one agrees.
    """
    number = partition_window(partition_key)[0] // spec.partition_ns
    return number % spec.retrain_every == spec.retrain_phase


def carry_plan(spec: TimescaleSpec, partition_key: str, trained: str) -> SplitPlan:
    """Return the plan of a partition between two trainings, which names the carried models.

    Args:
        spec: the timescale.
        partition_key: the hour or day.
        trained: the newest earlier partition that has models; empty where none has.
    """
    unit, word = ("h", "hour") if spec.partition_s == HOUR_S else ("days", "day")
    holding = f"the models of {trained} are carried over" if trained else f"no earlier {word} has models"
    reason = f"a run over a range trains every {spec.retrain_every} {unit} and at its end; {holding}"
    return SplitPlan(partition_key, reason, None, {}, {}, "", feature_hash(spec), carried_from=trained)


def read_plan(lake: Lake, spec: TimescaleSpec, partition_key: str) -> SplitPlan:
    """Read the stored plan of an as-of partition.

    Raises:
        LakeError: `splits` was never materialized for it.
    """
    return SplitPlan.from_json(lake.read_bytes(spec.asset("splits"), partition_key, "json"))


def read_problem(lake: Lake, spec: TimescaleSpec, plan: SplitPlan) -> Problem:
    """Build the learning problem of a plan, on the rows it was computed from.

    Raises:
        ChainError: features, labels or the configuration changed after the plan was computed, or the plan is
            not trainable.
    """
    if plan.split is None:
        raise ChainError(f"{spec.name} as of {plan.as_of} is {plan.status}: {plan.reason}")
    dataset, found = dataset_and_hash(lake, spec, plan.as_of)
    if (found, feature_hash(spec)) != (plan.data_hash, plan.feature_hash):
        raise ChainError(
            f"{spec.asset('splits')} of {plan.as_of} was computed from other rows (data {plan.data_hash}, "
            f"now {found}; features {plan.feature_hash}, now {feature_hash(spec)}): materialize splits again"
        )
    problem = pose_problem(dataset, plan.split, spec)
    if problem.thresholds != plan.thresholds:
        raise ChainError(
            f"{spec.asset('splits')} of {plan.as_of} was computed with other thresholds ({plan.thresholds}, "
            f"now {problem.thresholds}): materialize splits again"
        )
    return problem
