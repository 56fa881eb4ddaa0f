"""One hour's decision carried out: lake and registry told in an order in which a crash loses nothing.

The order is: version in the registry → model copy and decision in the lake → aliases. Where MLflow is away,
nothing of the hour is written. Whatever was the last step, deciding the hour again, or the next one, brings
the registry to what the newest decision says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptovol_dagster.core.promotion import Champion, Decision, decide, hold
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.resources import chain, decisions
from cryptovol_dagster.resources.lake import HOUR_NS, Lake, hour_key, hour_window
from cryptovol_dagster.resources.raw import RawStore
from cryptovol_dagster.resources.registry import Registry
from cryptovol_dagster.resources.reports import Reports

BACKFILL_TAG = "dagster/backfill"
#: Of a run that `cryptovol backfill` makes: also where it is of a single hour.
BACKFILL_VERB_TAG = "cryptovol/backfill"


@dataclass(frozen=True)
class Settled:
    """What came of an hour.

    Attributes:
        decision: as stored.
        path: where.
        aliases: what the registry's aliases did, or why nothing, in a sentence.
    """

    decision: Decision
    path: Path
    aliases: str


def why_aliases_stay(raw: RawStore, partition_keys: list[str], run_tags: Mapping[str, str]) -> str:
    """Say why a run must not move the aliases; empty where it may: alone, for the newest closed hour.

    Args:
        raw: where closed hours are recorded.
        partition_keys: of the run.
        run_tags: of the Dagster run.
    """
    if len(partition_keys) > 1:
        return "this run is over a range of hours"
    if BACKFILL_TAG in run_tags:
        return f"this run belongs to backfill {run_tags[BACKFILL_TAG]}"
    if BACKFILL_VERB_TAG in run_tags:
        return "this run was made by `cryptovol backfill`"
    (key,) = partition_keys
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
    registry: Registry,
    key: str,
    in_force: Champion | None,
    *,
    aliases_stay: str,
    tags: Mapping[str, str],
) -> Settled:
    """Decide an hour, store the decision and let the registry follow where it may.

    Args:
        lake: evaluation, models and decisions.
        spec: the timescale.
        reports: the latest copy.
        registry: versions and aliases.
        key: the hour.
        in_force: the champion of the newest earlier decision.
        aliases_stay: why the registry must be left alone; empty where it must not.
        tags: of a new version in the registry.

    Raises:
        LakeError: splits, the evaluation or a model are missing, or a folder cannot be written.
        ChainError: the evaluation is of other rows than the splits.
        DecisionError: an earlier decision cannot be read.
        TrackingError: MLflow cannot be reached or refuses.
    """
    asset = decisions.decision_asset(spec)
    decision = _decide(lake, spec, key, in_force)
    champion = decision.champion
    aliases = aliases_stay
    if champion is not None:
        content = _model_file(lake, spec, champion, is_new=decision.changed)
        if not aliases_stay:
            tags = {**tags, "cryptovol.data_hash": decision.data_hash}
            decision = decision.registered_as(registry.register(champion, content, tags))
        if decision.changed:
            lake.write_bytes(asset, key, content, "zip")
    written = decisions.write_decision(lake, spec, decision)
    if lake.is_newest(asset, key, "json"):
        reports.write(reports.decision, written)
    if not aliases_stay:
        aliases = _move(registry, decision.champion)
    return Settled(decision, lake.path(asset, key, "json"), aliases)


def _decide(lake: Lake, spec: TimescaleSpec, key: str, in_force: Champion | None) -> Decision:
    plan = chain.read_plan(lake, spec, key)
    if not plan.trainable:
        decision = hold(key, in_force, plan.reason)
    else:
        decision = decide(decisions.read_measured(lake, spec, plan), in_force)
    return _with_known_version(lake, spec, decision)


def _with_known_version(lake: Lake, spec: TimescaleSpec, decision: Decision) -> Decision:
    """Keep the version that the same champion got when this hour was decided before."""
    if not lake.exists(decisions.decision_asset(spec), decision.as_of, "json"):
        return decision
    before = decisions.read_decision(lake, spec, decision.as_of).champion
    if before is None or before.registry_version is None or not before.is_same_model(decision.champion):
        return decision
    return decision.registered_as(before.registry_version)


def _model_file(lake: Lake, spec: TimescaleSpec, champion: Champion, *, is_new: bool) -> bytes:
    """Read the champion's file: a new one's from its model asset, else the copy that was kept."""
    if is_new:
        return lake.read_bytes(chain.model_asset(spec, champion.model), champion.as_of, "zip")
    return decisions.read_champion_file(lake, spec, champion)


def _move(registry: Registry, champion: Champion | None) -> str:
    if champion is None or champion.registry_version is None:
        return "there is no champion"
    return registry.move_champion(champion, champion.registry_version)
