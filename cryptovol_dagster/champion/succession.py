"""Carry out one partition's decision: write to lake and registry in an order in which a crash loses nothing.

The order is: versions and verdict in the registry → model copies and decision in the lake → aliases. Where
MLflow cannot be reached, nothing of the partition is written. Whatever was the last step, deciding the
partition again, or the next one, updates the registry to the newest decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptovol_dagster.champion.scoring import StoredRows
from cryptovol_dagster.core.promotion.decision import GATE, Champion, Decision, DecisionError
from cryptovol_dagster.core.promotion.rule import decide, hold
from cryptovol_dagster.core.specs import HOUR_S, GateSpec, TimescaleSpec
from cryptovol_dagster.core.times import HOUR_NS, hour_key, hour_window
from cryptovol_dagster.lake import decisions, plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.tracking.registry import Registry
from cryptovol_dagster.tracking.runs import Tracking

BACKFILL_TAG = "dagster/backfill"
#: Of a run that `cryptovol backfill` starts, even for a single hour.
BACKFILL_VERB_TAG = "cryptovol/backfill"


@dataclass(frozen=True)
class Settled:
    """The outcome of a partition.

    Attributes:
        decision: as stored.
        standing: the effective decision: this one, or a later rollback.
        path: path of the decision.
        aliases: how the registry's aliases moved, or why not, in a sentence.
    """

    decision: Decision
    standing: Decision
    path: Path
    aliases: str


def why_aliases_stay(
    raw: RawStore, lake: Lake, spec: TimescaleSpec, partition_keys: list[str], run_tags: Mapping[str, str]
) -> str:
    """Return why a run must not move the aliases; empty where it may: a single partition at the present.

    The present is the newest closed hour; of days, which nothing closes, the newest with labels.

    Args:
        raw: where closed hours are recorded.
        lake: where labels are.
        spec: the timescale.
        partition_keys: of the run.
        run_tags: of the Dagster run.
    """
    if len(partition_keys) > 1:
        return "this run is over a range of partitions"
    if BACKFILL_TAG in run_tags:
        return f"this run belongs to backfill {run_tags[BACKFILL_TAG]}"
    if BACKFILL_VERB_TAG in run_tags:
        return "this run is of `cryptovol backfill`"
    (key,) = partition_keys
    if spec.partition_s != HOUR_S:
        newest = max(lake.partitions(spec.asset("labels")), default="none")
        return "" if newest == key else f"{key} is not the newest day with labels, {newest} is"
    closed = raw.closed_hours(hour_key(hour_window(key)[0] - HOUR_NS))
    if not closed:
        return f"{key} has not closed"
    if closed[-1].hour != key:
        return f"{key} is not the newest closed hour, {closed[-1].hour} is"
    return ""


def settle(
    lake: Lake,
    spec: TimescaleSpec,
    reports: Reports,
    tracking: Tracking,
    key: str,
    before: Decision | None,
    *,
    gate: GateSpec,
    aliases_stay: str,
    tags: Mapping[str, str],
) -> Settled:
    """Decide a partition, store the decision and let the registry follow where it may.

    Args:
        lake: rows, models, evaluation and decisions.
        spec: the timescale.
        reports: the latest copy.
        tracking: versions and aliases.
        key: the partition.
        before: the newest earlier effective decision.
        gate: how a challenger is compared with the champion.
        aliases_stay: why the registry must not change; empty where it may.
        tags: of a new version in the registry.

    Raises:
        LakeError: splits, the evaluation or a model are missing, or a folder cannot be written.
        ChainError: the evaluation or a model is of other rows than the splits.
        ModelError: a stored model cannot be read.
        DecisionError: an earlier decision cannot be read.
        TrackingError: MLflow cannot be reached or refuses.
    """
    asset = decisions.decision_asset(spec)
    decision = _with_known_versions(lake, spec, _decide(lake, spec, key, before, gate))
    files = {model: decisions.read_model_file(lake, spec, model) for model in _named(decision)}
    registry = Registry(tracking, spec)
    _require_standing(lake, spec, before)
    if not aliases_stay:
        tags = {**tags, "cryptovol.data_hash": decision.data_hash}
        decision = _registered(registry, tracking, decision, files, tags)
        if (judged := _judged(decision)) is not None:
            version = registry.register(tracking, judged, decisions.read_model_file(lake, spec, judged), tags)
            registry.tag_verdict(version, decision)
    for model, content in files.items():
        if not decisions.has_file(lake, spec, model):
            decisions.keep_file(lake, spec, model, content)
    written = decisions.write_decision(lake, spec, decision)
    if lake.is_newest(asset, key, decisions.DECIDED):
        reports.write(reports.decision, written)
    standing = decisions.standing_decision(lake, spec, key)
    aliases = aliases_stay or registry.follow(standing)
    return Settled(decision, standing, lake.path(asset, key, decisions.DECIDED), aliases)


def _require_standing(lake: Lake, spec: TimescaleSpec, before: Decision | None) -> None:
    """Check that there was no rollback while the rows were scored.

    Raises:
        DecisionError: there was a rollback; nothing has been written.
    """
    if before is None or not lake.exists(decisions.decision_asset(spec), before.as_of, decisions.DECIDED):
        return
    standing = decisions.standing_decision(lake, spec, before.as_of).champion
    if standing is not None and not standing.is_same_model(before.champion):
        raise DecisionError(
            f"expected {before.champion} to be champion after {before.as_of}, found {standing}: decide again"
        )


def _decide(lake: Lake, spec: TimescaleSpec, key: str, before: Decision | None, gate: GateSpec) -> Decision:
    plan = plans.read_plan(lake, spec, key)
    if not plan.trainable:
        return hold(key, before, plan.reason)
    measured = decisions.read_measured(lake, spec, plan)
    rows = StoredRows(lake, spec, plan, measured)
    return decide(measured, before, rows, horizon_s=float(spec.horizon_s), gate=gate)


def _named(decision: Decision) -> list[Champion]:
    """Return the champion and the challenger after a decision."""
    challenger = [] if decision.contest is None else [decision.contest.challenger]
    return [*([] if decision.champion is None else [decision.champion]), *challenger]


def _registered(
    registry: Registry,
    tracking: Tracking,
    decision: Decision,
    files: Mapping[Champion, bytes],
    tags: Mapping[str, str],
) -> Decision:
    """Return the decision with versions of champion and challenger, registered if they were not."""
    if decision.champion is not None:
        version = registry.register(tracking, decision.champion, files[decision.champion], tags)
        decision = decision.registered_as(version)
    if decision.contest is not None:
        challenger = decision.contest.challenger
        version = registry.register(tracking, challenger, files[challenger], tags)
        decision = decision.challenger_registered_as(version)
    return decision


def _judged(decision: Decision) -> Champion | None:
    """Return the model that a decision was about; None where nothing was decided."""
    if decision.kind == GATE and decision.challenge is not None:
        return decision.challenge.challenger
    return decision.champion if decision.changed else None


def _with_known_versions(lake: Lake, spec: TimescaleSpec, decision: Decision) -> Decision:
    """Return the decision with the versions that its models got when this partition was decided before."""
    if not lake.exists(decisions.decision_asset(spec), decision.as_of, decisions.DECIDED):
        return decision
    known = {
        model.identity: model.registry_version
        for model in _named(decisions.read_decision(lake, spec, decision.as_of))
    }
    if decision.champion is not None and (version := known.get(decision.champion.identity)) is not None:
        decision = decision.registered_as(version)
    contest = decision.contest
    if contest is not None and (version := known.get(contest.challenger.identity)) is not None:
        decision = decision.challenger_registered_as(version)
    return decision
