"""One partition's decision carried out: lake and registry told in an order in which a crash loses nothing.

The order is: versions and verdict in the registry → model copies and decision in the lake → aliases. Where
MLflow is away, nothing of the partition is written. Whatever was the last step, deciding the partition again,
or the next one, brings the registry to what the newest decision says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptovol_dagster.champion.scoring import hold_out, test_rows, validation_precisions, why_unscorable
from cryptovol_dagster.core.features.catalogue import feature_names
from cryptovol_dagster.core.models.kinds import FALLBACK, REFERENCES
from cryptovol_dagster.core.promotion.decision import GATE, Champion, Decision, DecisionError
from cryptovol_dagster.core.promotion.measured import Measured
from cryptovol_dagster.core.promotion.rule import (
    THE_CHALLENGER,
    THE_CHAMPION,
    Agenda,
    Evidence,
    agenda,
    decide,
    hold,
    is_look_due,
    nominate,
)
from cryptovol_dagster.core.specs import HOUR_S, NS, GateSpec, TimescaleSpec
from cryptovol_dagster.core.times import HOUR_NS, hour_key, hour_window
from cryptovol_dagster.lake import datasets, decisions, plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.models import model_asset, read_models
from cryptovol_dagster.lake.plans import SplitPlan
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.tracking.registry import Registry
from cryptovol_dagster.tracking.runs import Tracking

if TYPE_CHECKING:
    from cryptovol_dagster.core.models import Model

BACKFILL_TAG = "dagster/backfill"
#: Of a run that `cryptovol backfill` makes: also where it is of a single hour.
BACKFILL_VERB_TAG = "cryptovol/backfill"


@dataclass(frozen=True)
class Settled:
    """What came of a partition.

    Attributes:
        decision: as stored.
        standing: what is in force: the decision, or a rollback made after it.
        path: where the decision lies.
        aliases: what the registry's aliases did, or why nothing, in a sentence.
    """

    decision: Decision
    standing: Decision
    path: Path
    aliases: str


def why_aliases_stay(
    raw: RawStore, lake: Lake, spec: TimescaleSpec, partition_keys: list[str], run_tags: Mapping[str, str]
) -> str:
    """Say why a run must not move the aliases; empty where it may: alone, at the present.

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
        return "this run was made by `cryptovol backfill`"
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
        before: the newest earlier decision in force.
        gate: how a challenger is measured.
        aliases_stay: why the registry must be left alone; empty where it must not.
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
    files = {model: model_file(lake, spec, model) for model in _named(decision)}
    registry = Registry(tracking, spec)
    _require_standing(lake, spec, before)
    if not aliases_stay:
        tags = {**tags, "cryptovol.data_hash": decision.data_hash}
        decision = _registered(registry, tracking, decision, files, tags)
        if (judged := _judged(decision)) is not None:
            version = registry.register(tracking, judged, model_file(lake, spec, judged), tags)
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
    """Make sure that nobody rolled back while the rows were scored.

    Raises:
        DecisionError: somebody did; nothing has been written.
    """
    if before is None or not lake.exists(decisions.decision_asset(spec), before.as_of, decisions.DECIDED):
        return
    standing = decisions.standing_decision(lake, spec, before.as_of).champion
    if standing is not None and not standing.is_same_model(before.champion):
        raise DecisionError(
            f"expected {before.champion} to be champion after {before.as_of}, found {standing}: decide again"
        )


def _decide(lake: Lake, spec: TimescaleSpec, key: str, before: Decision | None, gate: GateSpec) -> Decision:
    from cryptovol_dagster.core.models import load_model

    plan = plans.read_plan(lake, spec, key)
    if not plan.trainable:
        return hold(key, before, plan.reason)
    measured = decisions.read_measured(lake, spec, plan)
    champion = unscorable = None
    if before is not None and before.champion is not None:
        champion = load_model(decisions.read_champion_file(lake, spec, before.champion))
        unscorable = why_unscorable(champion, feature_names(spec))
    todo = agenda(measured, before, gate=gate, why_unscorable=unscorable or "")
    evidence = Evidence()
    if champion is not None and before is not None and not todo.appoint:
        evidence = _evidence(lake, spec, plan, measured, before, champion, todo, gate)
    return decide(measured, before, todo, evidence, horizon_s=spec.horizon_ns / NS, gate=gate)


def _evidence(
    lake: Lake,
    spec: TimescaleSpec,
    plan: SplitPlan,
    measured: Measured,
    before: Decision,
    champion: Model,
    todo: Agenda,
    gate: GateSpec,
) -> Evidence:
    """Score what the agenda asks for, and nothing else: most partitions read no row."""
    from cryptovol_dagster.core.models import load_model

    contest = todo.contest
    if todo.nominate and measured.candidates:
        problem = plans.read_problem(lake, spec, plan)
        candidates = read_models(lake, spec, plan, measured.candidates)
        contest = nominate(measured, validation_precisions(problem, candidates), before)
    if todo.is_decided:
        return Evidence(contest)
    rows = matured = None
    if contest is not None and is_look_due(contest, measured.end_ns, gate):
        challenger = load_model(model_file(lake, spec, contest.challenger))
        models = _references(lake, spec, contest.challenger.as_of) | {
            THE_CHAMPION: champion,
            THE_CHALLENGER: challenger,
        }
        span = contest.start_ns, measured.end_ns
        rows = hold_out(lake, spec, *span, challenger.meta.thresholds, models)
    if todo.has_expired:
        models = {THE_CHAMPION: champion}
        if FALLBACK in measured.trained:
            models |= read_models(lake, spec, plan, [FALLBACK])
        matured = test_rows(plans.read_problem(lake, spec, plan), models)
    return Evidence(contest, rows, matured)


def _references(lake: Lake, spec: TimescaleSpec, as_of: str) -> dict[str, Model]:
    """Read the plain models that were trained with a challenger; one that was not is left out."""
    from cryptovol_dagster.core.models import load_model

    return {
        name: load_model(lake.read_bytes(model_asset(spec, name), as_of, "zip"))
        for name in REFERENCES
        if lake.exists(model_asset(spec, name), as_of, "zip")
    }


def model_file(lake: Lake, spec: TimescaleSpec, model: Champion) -> bytes:
    """Read a champion's or challenger's file: the copy that was kept, else its model asset's.

    Raises:
        LakeError: neither is there.
        ChainError: the asset was trained by another plan since.
        ModelError: the file is no model file.
    """
    from cryptovol_dagster.core.models.base import read_parts

    if decisions.has_file(lake, spec, model):
        return decisions.read_champion_file(lake, spec, model)
    asset = model_asset(spec, model.model)
    content = lake.read_bytes(asset, model.as_of, "zip")
    if read_parts(content)[0].problem_hash != model.problem_hash:
        raise datasets.ChainError(
            f"{asset} of {model.as_of} was trained by other splits than the decision names: evaluate again"
        )
    return content


def _named(decision: Decision) -> list[Champion]:
    """List the models that a decision leaves in force or under measurement."""
    challenger = [] if decision.contest is None else [decision.contest.challenger]
    return [*([] if decision.champion is None else [decision.champion]), *challenger]


def _registered(
    registry: Registry,
    tracking: Tracking,
    decision: Decision,
    files: Mapping[Champion, bytes],
    tags: Mapping[str, str],
) -> Decision:
    """Make sure that champion and challenger have versions."""
    if decision.champion is not None:
        version = registry.register(tracking, decision.champion, files[decision.champion], tags)
        decision = decision.registered_as(version)
    if decision.contest is not None:
        challenger = decision.contest.challenger
        version = registry.register(tracking, challenger, files[challenger], tags)
        decision = decision.challenger_registered_as(version)
    return decision


def _judged(decision: Decision) -> Champion | None:
    """Name the model that a decision was about; None where nothing was decided."""
    if decision.kind == GATE and decision.challenge is not None:
        return decision.challenge.challenger
    return decision.champion if decision.changed else None


def _with_known_versions(lake: Lake, spec: TimescaleSpec, decision: Decision) -> Decision:
    """Keep the versions that the same models got when this partition was decided before."""
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
