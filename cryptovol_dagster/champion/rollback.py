"""Rollback to an earlier model by hand, in an order in which a crash loses nothing.

The order is that of `succession`: verdict on the replaced version → model copy and decision in the lake →
aliases. The decision is stored beside the one it follows (`decisions.ROLLED_BACK`). So deciding that
partition again does not undo it, and the next partition continues from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptovol_dagster.core.features.catalogue import feature_hash, feature_names
from cryptovol_dagster.core.models import load_model
from cryptovol_dagster.core.models.base import why_unscorable
from cryptovol_dagster.core.promotion.decision import Champion, Decision, DecisionError
from cryptovol_dagster.core.promotion.rule import roll_back
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.lake import decisions
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.tracking.registry import Registry


@dataclass(frozen=True)
class Rollback:
    """Result of a rollback, or of a dry run.

    Attributes:
        taken_out: the champion before.
        decision: the new decision.
        aliases: how the registry's aliases moved, in a sentence; empty for a dry run.
    """

    taken_out: Champion
    decision: Decision
    aliases: str = ""


def require_champion(lake: Lake, spec: TimescaleSpec) -> tuple[Decision, Champion]:
    """Return the newest decision and its champion; to be called before opening a registry, which creates one.

    Raises:
        DecisionError: there is no decision yet, or no champion.
    """
    newest = decisions.newest_decision(lake, spec)
    if newest is None or newest.champion is None:
        raise DecisionError(
            f"{spec.name} has no champion to roll back: "
            f"`{decisions.evaluate_command(spec.name)}` decides who is the first"
        )
    return newest, newest.champion


def roll_back_to(
    lake: Lake,
    spec: TimescaleSpec,
    reports: Reports,
    registry: Registry,
    *,
    to: str,
    reason: str,
    dry_run: bool = False,
) -> Rollback:
    """Make the model of a registry version champion, and bar the champion it replaces.

    Args:
        lake: decisions, models, and the partitions with labels.
        spec: the timescale.
        reports: the latest copy.
        registry: versions and aliases.
        to: ``previous``, or a version number.
        reason: a person's words.
        dry_run: return the changes, and write nothing.

    Raises:
        DecisionError: nothing was decided yet, or the model is champion already or has other features.
        RegistryError: there is no such version.
        TrackingError: MLflow cannot be reached or refuses.
        LakeError: a folder cannot be written.
    """
    before, replaced = require_champion(lake, spec)
    model = registry.model_of(to)
    if model.feature_hash != feature_hash(spec):
        raise DecisionError(
            f"{model} was trained on feature set {model.feature_hash}, expected {feature_hash(spec)}: it "
            "cannot score the features there are now"
        )
    is_kept = decisions.has_file(lake, spec, model)
    content = decisions.read_champion_file(lake, spec, model) if is_kept else registry.file_of(model)
    if why := why_unscorable(load_model(content), feature_names(spec), spec.reference_set):
        raise DecisionError(f"{model} cannot score the features there are now: {why}")
    labelled = lake.partitions(spec.asset("labels"))
    now_ns = partition_window(max([*labelled, before.as_of]))[1]
    decision = roll_back(before, model, as_of=before.as_of, now_ns=now_ns, reason=reason)
    if dry_run:
        return Rollback(replaced, decision)
    if replaced.registry_version is not None:
        registry.tag_verdict(replaced.registry_version, decision)
    if not is_kept:
        decisions.keep_file(lake, spec, model, content)
    reports.write(
        reports.decision, decisions.write_decision(lake, spec, decision, suffix=decisions.ROLLED_BACK)
    )
    return Rollback(replaced, decision, registry.follow(decision))
