"""Asset checks: each rule is a small function; one step per asset runs its rules over a run's partitions.

A rule reads a stored partition and returns sentences: expected, found, and where. None means
that the partition passes. Rules read stored data, not data in memory.

Dagster takes one result per check and run. For a range it names the partitions that fail. An evaluation of
each partition is logged beside it; without one, Dagster shows the check of that partition as skipped.
"""

# No `from __future__ import annotations` here: Dagster reads annotations.

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.lake import plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.raw_ticks import RawStore

#: Failing sentences shown for each hour.
_SHOWN = 5


@dataclass(frozen=True)
class Stored:
    """A stored partition, as the rules of its asset see it: its table is read once."""

    lake: Lake
    asset: str
    key: str

    @cached_property
    def table(self) -> pa.Table:
        """The partition's table."""
        return self.lake.read_table(self.asset, *partition_window(self.key))

    def frame(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the partition's table, or columns of it, as a frame."""
        return (self.table if columns is None else self.table.select(columns)).to_pandas()

    def json(self) -> dict[str, Any]:
        """Read the partition's JSON."""
        return json.loads(self.lake.read_bytes(self.asset, self.key, "json"))

    def was_skipped(self, spec: TimescaleSpec) -> bool:
        """Return whether nothing was trained as of this partition, so that there is nothing to check."""
        return not plans.read_plan(self.lake, spec, self.key).trainable


Rule = Callable[[Stored], list[str]]


@dataclass(frozen=True)
class RawRule:
    """A rule about raw storage, which is evaluated for all hours of a run at once.

    Attributes:
        find: returns sentences by hour, none for an hour that passes.
    """

    find: Callable[[RawStore, Sequence[str]], dict[str, list[str]]]

    def over(self, raw: RawStore, keys: Sequence[str]) -> Rule:
        """Return a rule about single partitions of a run; its first call evaluates all of them."""
        found = cache(partial(self.find, raw, keys))
        return lambda stored: found()[stored.key]


@dataclass(frozen=True)
class Check:
    """A declared asset check: a rule about a partition, and the meaning of its failure.

    Attributes:
        asset: that it is about.
        name: of the check.
        rule: the rule.
        description: condition to pass.
        blocking: whether a failure is an ERROR and stops the run. Any other failure is a WARN: an ERROR in a
            run that succeeds would raise no alert.
        nothing_to_check: returns why a partition has nothing to check; empty where it has. Such a partition
            passes, and its result states the reason.
    """

    asset: dg.AssetKey
    name: str
    rule: Rule | RawRule
    description: str
    blocking: bool = False
    nothing_to_check: Callable[[Stored], str] | None = None

    @property
    def key(self) -> dg.AssetCheckKey:
        """Key of the check in Dagster."""
        return dg.AssetCheckKey(self.asset, self.name)

    @property
    def severity(self) -> dg.AssetCheckSeverity:
        """Severity of a failure."""
        return dg.AssetCheckSeverity.ERROR if self.blocking else dg.AssetCheckSeverity.WARN

    def why_nothing(self, stored: Stored) -> str:
        """Return why a partition has nothing to check; empty where it has."""
        return self.nothing_to_check(stored) if self.nothing_to_check else ""

    def spec(self, partitions: dg.PartitionsDefinition) -> dg.AssetCheckSpec:
        """Return the spec that Dagster shows before the first evaluation."""
        return dg.AssetCheckSpec(
            self.name,
            asset=self.asset,
            description=self.description,
            blocking=self.blocking,
            partitions_def=partitions,
        )


def asset_checks(
    checks: Sequence[Check], partitions: dg.PartitionsDefinition
) -> list[dg.AssetChecksDefinition]:
    """Build one step per asset, which evaluates its checks in the order of declaration."""
    by_asset: dict[dg.AssetKey, list[Check]] = {}
    for check in checks:
        by_asset.setdefault(check.asset, []).append(check)
    return [_checks_step(asset, own, partitions) for asset, own in by_asset.items()]


def _checks_step(
    asset: dg.AssetKey, checks: Sequence[Check], partitions: dg.PartitionsDefinition
) -> dg.AssetChecksDefinition:
    of_raw = any(isinstance(check.rule, RawRule) for check in checks)

    @dg.multi_asset_check(
        name=f"{asset.to_python_identifier()}_checks",
        specs=[check.spec(partitions) for check in checks],
        can_subset=True,
        required_resource_keys={"lake", "raw"} if of_raw else {"lake"},
    )
    def step(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        keys = context.partition_keys
        rules = {
            check: check.rule.over(context.resources.raw, keys)
            if isinstance(check.rule, RawRule)
            else check.rule
            for check in checks
            if check.key in context.selected_asset_check_keys
        }
        # A generator: only one partition's table is in memory.
        partitions = (Stored(context.resources.lake, asset.to_user_string(), key) for key in keys)
        for check, sentences in _evaluate(rules, partitions):
            empty = {
                key: check.why_nothing(Stored(context.resources.lake, asset.to_user_string(), key))
                for key in keys
            }
            if not context.has_partition_key:
                for key in keys:
                    evaluation = _evaluation(check, key, sentences[key], empty.get(key, ""))
                    # Dagster takes it; only the annotation of its method does not say so.
                    context.op_execution_context.log_event(evaluation)  # pyright: ignore[reportArgumentType]
            yield _result(check, sentences, empty)

    return step


def _evaluate(
    rules: Mapping[Check, Rule], partitions: Iterable[Stored]
) -> Iterator[tuple[Check, dict[str, list[str]]]]:
    """Evaluate every rule on every partition; yield each check with its findings by partition.

    Raises:
        Exception: the first that a rule raised, once the results of the other checks were yielded. A missing
            column, for example, fails the check `schema` and breaks the rules that read it.
    """
    found: dict[Check, dict[str, list[str]]] = {check: {} for check in rules}
    broken: dict[Check, Exception] = {}
    for stored in partitions:
        for check, rule in rules.items():
            if check in broken:
                continue
            try:
                found[check][stored.key] = rule(stored)
            except Exception as error:  # noqa: BLE001 - raised below, once the others were evaluated
                broken[check] = error
    for check, sentences in found.items():
        if check not in broken:
            yield check, sentences
    if broken:
        raise next(iter(broken.values()))


def _evaluation(check: Check, key: str, sentences: Sequence[str], empty: str) -> dg.AssetCheckEvaluation:
    """Return the evaluation of a check for one partition of a range, for the UI; it blocks nothing."""
    return dg.AssetCheckEvaluation(
        check.asset,
        check.name,
        passed=not sentences,
        severity=check.severity,
        description="\n".join(sentences[:_SHOWN]) or empty or None,
        blocking=check.blocking,
        partition=key,
    )


def _result(check: Check, found: Mapping[str, list[str]], empty: Mapping[str, str]) -> dg.AssetCheckResult:
    failing = {key: sentences for key, sentences in found.items() if sentences}
    lines = [f"{key}: {sentence}" for key, sentences in failing.items() for sentence in sentences[:_SHOWN]]
    reasons = [f"{key}: nothing to check: {reason}" for key, reason in empty.items() if reason]
    shown = lines or reasons
    return dg.AssetCheckResult(
        asset_key=check.asset,
        check_name=check.name,
        passed=not failing,
        severity=check.severity,
        description="\n".join(shown[:_SHOWN]) or None,
        metadata={
            "partitions": len(found),
            "failing_partitions": dg.MetadataValue.json(sorted(failing)),
            "findings": dg.MetadataValue.json(lines),
            **({"nothing_to_check": dg.MetadataValue.json(reasons)} if reasons else {}),
        },
    )
