"""Decisions and champions in the lake: what was decided as of each hour, and the file of the model in force.

A decision's partition holds ``part.json``; where it put another champion in force, also a copy of that model,
``part.zip``. The copy makes a champion outlive whatever becomes of the hour it was trained in.
"""

from __future__ import annotations

import json

from cryptovol_dagster.core.evaluation_schema import read_report
from cryptovol_dagster.core.promotion import Champion, Decision, DecisionError, Measured
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.resources import chain
from cryptovol_dagster.resources.chain import SplitPlan
from cryptovol_dagster.resources.lake import Lake


def decision_asset(spec: TimescaleSpec) -> str:
    """Name the decisions' partitions in the lake."""
    return f"{spec.name}/champion"


def read_decision(lake: Lake, spec: TimescaleSpec, partition_key: str) -> Decision:
    """Read what was decided as of an hour.

    Raises:
        LakeError: nothing was.
        DecisionError: the file is no decision of this version; the message names it.
    """
    asset = decision_asset(spec)
    content = lake.read_bytes(asset, partition_key, "json")
    try:
        return Decision.from_dict(json.loads(content))
    except (ValueError, DecisionError) as error:
        path = lake.path(asset, partition_key, "json")
        raise DecisionError(f"{path}: {error}") from error


def newest_decision(lake: Lake, spec: TimescaleSpec, *, before: str | None = None) -> Decision | None:
    """Read the newest stored decision, if there is any.

    Args:
        lake: where decisions are.
        spec: the timescale.
        before: only decisions as of an earlier hour than this one.

    Raises:
        DecisionError: the file is no decision of this version.
    """
    keys = lake.partitions(decision_asset(spec), "json")
    earlier = [key for key in keys if before is None or key < before]
    return read_decision(lake, spec, earlier[-1]) if earlier else None


def write_decision(lake: Lake, spec: TimescaleSpec, decision: Decision) -> bytes:
    """Store a decision and return its bytes; the same decision is the same bytes.

    Raises:
        LakeError: the folder cannot be written.
    """
    content = json.dumps(decision.to_dict(), indent=2, allow_nan=False).encode()
    lake.write_bytes(decision_asset(spec), decision.as_of, content, "json")
    return content


def read_champion_file(lake: Lake, spec: TimescaleSpec, champion: Champion) -> bytes:
    """Read the model file of a champion, from the hour whose decision put it in force.

    Raises:
        LakeError: it is missing.
    """
    return lake.read_bytes(decision_asset(spec), champion.as_of, "zip")


def read_measured(lake: Lake, spec: TimescaleSpec, plan: SplitPlan) -> Measured:
    """Read what the evaluation of a plan's partition says.

    Raises:
        LakeError: there is no evaluation, or a model's run was not recorded.
        ChainError: the evaluation is of other rows than the plan.
        EvaluationError: it is of another schema version.
    """
    key = plan.as_of
    content = lake.read_bytes(f"{spec.name}/model_evaluation", key, "json")
    report = read_report(content)
    if report["data"]["hash"] != plan.data_hash:
        raise chain.ChainError(
            f"{spec.name}/model_evaluation of {key} is of data {report['data']['hash']}, splits are of "
            f"{plan.data_hash}: evaluate again"
        )
    runs = {
        name: json.loads(lake.read_bytes(chain.model_asset(spec, name), key, "json"))["mlflow_run_id"]
        for name in report["models"]
    }
    return Measured.from_report(
        report,
        mlflow_run_ids=runs,
        problem_hash=plan.problem_hash,
        evaluation_hash=chain.hash_bytes(content),
    )
