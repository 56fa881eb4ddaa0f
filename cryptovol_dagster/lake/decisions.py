"""Decisions in the lake, as of each partition, and the files of their champions and challengers.

A decision's partition contains ``part.json``, and ``part.rollback.json`` where a person rolled back after it.
The rollback stays, however often the partition is decided again. Champions and challengers are beside
the decision of the partition they were trained as of, as ``part.<kind>.<problem>.zip``: the copy survives
whatever happens to that partition.
"""

from __future__ import annotations

import json

from cryptovol_dagster.core.evaluation.report import read_report
from cryptovol_dagster.core.promotion.decision import Champion, Decision, DecisionError
from cryptovol_dagster.core.promotion.measured import Measured
from cryptovol_dagster.core.specs import SECONDS, TimescaleSpec
from cryptovol_dagster.lake import datasets, models
from cryptovol_dagster.lake.files import ROLLED_BACK, Lake
from cryptovol_dagster.lake.market import hash_bytes
from cryptovol_dagster.lake.plans import SplitPlan

DECIDED = "json"
#: File of the champion before there were challengers.
_EARLIER_FILE = "zip"


def evaluate_command(chain: str) -> str:
    """Return what to type for an evaluation, and with it a decision, of a chain.

    Examples:
        >>> evaluate_command("minutes_h5")
        'cryptovol evaluate --chain minutes_h5'
    """
    return "cryptovol evaluate" if chain == SECONDS else f"cryptovol evaluate --chain {chain}"


def decision_asset(spec: TimescaleSpec) -> str:
    """Return the name of the asset of decisions."""
    return spec.asset("champion")


def read_decision(lake: Lake, spec: TimescaleSpec, partition_key: str, suffix: str = DECIDED) -> Decision:
    """Read the decision as of a partition, by rule or (`ROLLED_BACK`) by hand.

    Raises:
        LakeError: nothing was decided.
        DecisionError: the file is not a decision of a known version; the message names it.
    """
    asset = decision_asset(spec)
    content = lake.read_bytes(asset, partition_key, suffix)
    try:
        return Decision.from_dict(json.loads(content))
    except (ValueError, DecisionError) as error:
        path = lake.path(asset, partition_key, suffix)
        raise DecisionError(f"{path}: {error}") from error


def standing_decision(lake: Lake, spec: TimescaleSpec, partition_key: str) -> Decision:
    """Read the effective decision of a partition: a rollback takes precedence over the decision by rule.

    Raises:
        LakeError: nothing was decided.
        DecisionError: the file is not a decision of a known version.
    """
    by_hand = lake.exists(decision_asset(spec), partition_key, ROLLED_BACK)
    return read_decision(lake, spec, partition_key, ROLLED_BACK if by_hand else DECIDED)


def newest_decision(lake: Lake, spec: TimescaleSpec, *, before: str | None = None) -> Decision | None:
    """Read the newest effective decision, if there is any.

    Args:
        lake: where decisions are.
        spec: the timescale.
        before: only decisions as of an earlier partition than this one.

    Raises:
        DecisionError: the file is not a decision of a known version.
    """
    keys = lake.partitions(decision_asset(spec), DECIDED)
    earlier = [key for key in keys if before is None or key < before]
    return standing_decision(lake, spec, earlier[-1]) if earlier else None


def history(lake: Lake, spec: TimescaleSpec) -> list[Decision]:
    """Read every decision, oldest first; a rollback follows the decision that it replaced.

    Raises:
        DecisionError: a file is not a decision of a known version.
    """
    found = []
    for key in lake.partitions(decision_asset(spec), DECIDED):
        found.append(read_decision(lake, spec, key))
        if lake.exists(decision_asset(spec), key, ROLLED_BACK):
            found.append(read_decision(lake, spec, key, ROLLED_BACK))
    return found


def write_decision(lake: Lake, spec: TimescaleSpec, decision: Decision, suffix: str = DECIDED) -> bytes:
    """Store a decision and return its bytes; equal decisions have equal bytes.

    Raises:
        LakeError: the folder cannot be written.
    """
    content = json.dumps(decision.to_dict(), indent=2, allow_nan=False).encode()
    lake.write_bytes(decision_asset(spec), decision.as_of, content, suffix)
    return content


def _copy_suffix(model: Champion) -> str:
    return f"{model.model}.{model.problem_hash}.zip"


def has_file(lake: Lake, spec: TimescaleSpec, model: Champion) -> bool:
    """Return whether a copy of a champion or challenger is in the lake."""
    return lake.exists(decision_asset(spec), model.as_of, _suffix_of(lake, spec, model))


def _suffix_of(lake: Lake, spec: TimescaleSpec, model: Champion) -> str:
    """Return the suffix of the copy; one under the earlier name counts if it contains this model."""
    from cryptovol_dagster.core.models.base import read_parts

    asset, suffix = decision_asset(spec), _copy_suffix(model)
    if lake.exists(asset, model.as_of, suffix) or not lake.exists(asset, model.as_of, _EARLIER_FILE):
        return suffix
    meta, _ = read_parts(lake.read_bytes(asset, model.as_of, _EARLIER_FILE))
    is_this_model = (meta.name, meta.problem_hash) == (model.model, model.problem_hash)
    return _EARLIER_FILE if is_this_model else suffix


def keep_file(lake: Lake, spec: TimescaleSpec, model: Champion, content: bytes) -> None:
    """Keep a copy of a champion or challenger.

    Raises:
        LakeError: the folder cannot be written.
    """
    lake.write_bytes(decision_asset(spec), model.as_of, content, _copy_suffix(model))


def read_champion_file(lake: Lake, spec: TimescaleSpec, champion: Champion) -> bytes:
    """Read the model file of a champion or challenger: the copy that was kept.

    Raises:
        LakeError: it is missing.
        ModelError: a file under the earlier name is not a model file.
    """
    return lake.read_bytes(decision_asset(spec), champion.as_of, _suffix_of(lake, spec, champion))


def read_model_file(lake: Lake, spec: TimescaleSpec, model: Champion) -> bytes:
    """Read a champion's or challenger's file: the copy that was kept, else the file of its model asset.

    Raises:
        LakeError: neither exists.
        ChainError: the asset was trained with another plan since.
        ModelError: the file is not a model file.
    """
    from cryptovol_dagster.core.models.base import read_parts

    if has_file(lake, spec, model):
        return read_champion_file(lake, spec, model)
    asset = models.model_asset(spec, model.model)
    content = lake.read_bytes(asset, model.as_of, "zip")
    if read_parts(content)[0].problem_hash != model.problem_hash:
        raise datasets.ChainError(
            f"{asset} of {model.as_of} was trained by other splits than the decision names: evaluate again"
        )
    return content


def read_measured(lake: Lake, spec: TimescaleSpec, plan: SplitPlan) -> Measured:
    """Read the evaluation of a plan's partition for a decision.

    Raises:
        LakeError: there is no evaluation, or a model's run was not recorded.
        ChainError: the evaluation is of other rows than the plan, or the plan is not trainable.
        EvaluationError: it is of another schema version.
    """
    key = plan.as_of
    if plan.split is None:
        raise datasets.ChainError(f"{spec.name} as of {key} is {plan.status}: {plan.reason}")
    content = lake.read_bytes(spec.asset("model_evaluation"), key, "json")
    report = read_report(content)
    if report.data.hash != plan.data_hash:
        raise datasets.ChainError(
            f"{spec.asset('model_evaluation')} of {key} is of data {report.data.hash}, splits are of "
            f"{plan.data_hash}: evaluate again"
        )
    runs = {
        name: json.loads(lake.read_bytes(models.model_asset(spec, name), key, "json"))["mlflow_run_id"]
        for name in report.models
    }
    return Measured.from_report(
        report,
        test=plan.split.test,
        mlflow_run_ids=runs,
        problem_hash=plan.problem_hash,
        evaluation_hash=hash_bytes(content),
    )
