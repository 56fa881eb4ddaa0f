"""Materializing assets in process, on the instance that `cryptovol ui` shows: same code, same lineage."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import dagster as dg

from cryptovol_dagster.chains import models_of, spec_of
from cryptovol_dagster.core.specs import SECONDS, TimescaleSpec, market_assets
from cryptovol_dagster.core.times import (
    DAY_NS,
    partition_window,
    partitions_between,
)
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.failures import error_line, failure_line, step_name
from cryptovol_dagster.defs.partitions import RANGE_END, RANGE_START
from cryptovol_dagster.lake import plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.models import outdated_models
from cryptovol_dagster.machine.instance import ensure_dagster_home, open_instance
from cryptovol_dagster.verbs.ranges import specs_of, validate_range
from ingestor.errors import CryptovolError
from ingestor.settings import Settings


class RunFailed(CryptovolError):  # noqa: N818 - the name states the fact
    """A Dagster run failed; the message is its root cause in one line."""


@dataclass(frozen=True)
class CheckOutcome:
    """One evaluation of an asset check.

    Attributes:
        asset: key of the asset.
        name: of the check.
        passed: whether it passed.
        severity: ``ERROR`` or ``WARN``.
        description: expected, found and place, when it failed.
    """

    asset: str
    name: str
    passed: bool
    severity: str
    description: str


@dataclass(frozen=True)
class RunSummary:
    """Result of a run.

    Attributes:
        run_id: of the Dagster run.
        partitions: keys of the range.
        materialized: number of partitions written, by asset.
        checks: every check evaluated.
        metadata: numbers and words the assets reported, by asset and partition.
    """

    run_id: str
    partitions: tuple[str, ...]
    materialized: dict[str, int]
    checks: tuple[CheckOutcome, ...]
    metadata: dict[str, dict[str, dict[str, Any]]]

    @property
    def checks_passed(self) -> int:
        """Checks that passed."""
        return sum(check.passed for check in self.checks)

    @property
    def not_trainable(self) -> dict[str, str]:
        """Partitions on which nothing could be trained, and why."""
        return self._of_splits(plans.NOT_TRAINABLE, "reason")

    @property
    def carried(self) -> dict[str, str]:
        """Return the partitions between two trainings, with that of the carried models (or ``none``)."""
        return self._of_splits(plans.CARRIED, "models_of")

    def _of_splits(self, status: str, what: str) -> dict[str, str]:
        splits = {asset: found for asset, found in self.metadata.items() if asset.endswith("/splits")}
        # A run over several chains names the chain.
        return {
            key if len(splits) == 1 else f"{asset.removesuffix('/splits')} {key}": metadata[what]
            for asset, found in splits.items()
            for key, metadata in found.items()
            if metadata["status"] == status
        }

    @property
    def checks_failed(self) -> tuple[CheckOutcome, ...]:
        """Checks that did not pass, warnings included."""
        return tuple(check for check in self.checks if not check.passed)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "run_id": self.run_id,
            "partitions": list(self.partitions),
            "materialized": self.materialized,
            "not_trainable": self.not_trainable,
            "carried": self.carried,
            "checks_passed": self.checks_passed,
            "checks_failed": [check.__dict__ for check in self.checks_failed],
        }


def materialize_range(
    settings: Settings,
    from_key: str,
    to_key: str,
    selection: Sequence[str],
    *,
    defs: dg.Definitions | None = None,
    tags: Mapping[str, str] | None = None,
    on_asset: Callable[[str, float], None] | None = None,
) -> RunSummary:
    """Materialize assets, and evaluate their checks, over a range of hours or days in one run.

    Args:
        settings: the configuration; its Dagster instance is used (``$DAGSTER_HOME``, else in the data
            folder).
        from_key: first hour or day, e.g. ``2026-04-04-03:00`` or ``2024-12-31``.
        to_key: last one, inclusive. The same as `from_key` for a single partition.
        selection: asset keys as users write them, e.g. ``["ticks", "seconds/bars"]``.
        defs: the code location to run, when it has been built before.
        tags: of the run, besides those of a range.
        on_asset: called from another thread with each finished asset and its seconds.

    Raises:
        PartitionKeyError: a key is not an hour.
        NothingToDo: the range is empty or outside the configured partitions.
        ValueError: an asset of the selection has partitions of another length.
        RunFailed: a step or a blocking check failed.
        InstanceError: the Dagster home cannot be used.
    """
    validate_range(settings, from_key, to_key)
    defs = defs or build_defs(settings)
    # Dagster would take an hour's start for a day, and would also materialize the day after the last one.
    if strays := sorted({*selection} - {*assets_over(defs, from_key)}):
        raise ValueError(f"{', '.join(strays)}: not an asset with partitions like {from_key}")
    job = defs.resolve_implicit_global_asset_job_def()
    one = from_key == to_key
    home = ensure_dagster_home(settings)
    run_id = str(uuid4())
    with (
        quiet_dagster(),
        open_instance(home) as instance,
        _watched(instance, run_id, on_asset),
    ):
        result = job.execute_in_process(
            instance=instance,
            run_id=run_id,
            asset_selection=[dg.AssetKey.from_user_string(name) for name in selection],
            partition_key=from_key if one else None,
            tags={**(tags or {}), **({} if one else {RANGE_START: from_key, RANGE_END: to_key})},
            raise_on_error=False,
        )
        if not result.success:
            raise RunFailed(root_cause(result))
        return _summary(result, from_key, to_key)


def assets_over(defs: dg.Definitions, key: str) -> list[str]:
    """Return the assets whose partitions are as long as that of `key`: hours or days."""
    start_ns, end_ns = partition_window(key)
    wanted = dg.DailyPartitionsDefinition if end_ns - start_ns == DAY_NS else dg.HourlyPartitionsDefinition
    graph = defs.resolve_asset_graph()
    return [
        asset.to_user_string()
        for asset in sorted(graph.executable_asset_keys)
        if isinstance(graph.get(asset).partitions_def, wanted)
    ]


@contextmanager
def _watched(
    instance: dg.DagsterInstance, run_id: str, on_asset: Callable[[str, float], None] | None
) -> Iterator[None]:
    """Follow a run through the instance's event log, as the Dagster UI does."""
    if on_asset is None:
        yield
        return
    started: dict[str, float] = {}
    materialized: set[str] = set()  # checks are steps too

    def seen(entry: dg.EventLogEntry, cursor: str) -> None:
        event = entry.dagster_event
        if event is None or event.step_key is None:
            return
        if event.event_type is dg.DagsterEventType.STEP_START:
            started[event.step_key] = entry.timestamp
        elif event.event_type is dg.DagsterEventType.ASSET_MATERIALIZATION:
            materialized.add(event.step_key)
        elif event.is_step_success and event.step_key in materialized:
            on_asset(event.step_key.replace("__", "/"), entry.timestamp - started[event.step_key])

    instance.watch_event_logs(run_id, None, seen)
    try:
        yield
    finally:
        instance.end_watch_event_logs(run_id, seen)


@contextmanager
def quiet_dagster() -> Iterator[None]:
    """Keep Dagster's event stream off the terminal: a verb prints a result or one line."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def root_cause(result: dg.ExecuteInProcessResult) -> str:
    """Return the first failing step and its message, in one line."""
    failures = [event for event in result.all_events if event.is_step_failure]
    if not failures:
        return _before_any_step(result)
    return f"{step_name(failures[0])}: {failure_line(failures[0])}"


def _before_any_step(result: dg.ExecuteInProcessResult) -> str:
    """Return the error of a run that failed before any step: often MLflow, which cannot be reached."""
    for event in result.all_events:
        error = getattr(event.event_specific_data, "error", None)
        if error is not None:
            return error_line(error)
    return f"run {result.run_id} failed before any step began"


def _summary(result: dg.ExecuteInProcessResult, from_key: str, to_key: str) -> RunSummary:
    materialized: dict[str, int] = {}
    metadata: dict[str, dict[str, dict[str, Any]]] = {}
    for event in result.get_asset_materialization_events():
        materialization = event.step_materialization_data.materialization
        asset = materialization.asset_key.to_user_string()
        materialized[asset] = materialized.get(asset, 0) + 1
        values = {name: value.value for name, value in materialization.metadata.items()}
        metadata.setdefault(asset, {})[str(materialization.partition)] = values
    start, first_end = partition_window(from_key)
    _, end = partition_window(to_key)
    return RunSummary(
        run_id=result.run_id,
        partitions=tuple(partitions_between(start, end, first_end - start)),
        materialized=materialized,
        checks=tuple(
            CheckOutcome(
                check.asset_key.to_user_string(),
                check.check_name,
                check.passed,
                check.severity.value,
                check.description or "",
            )
            for check in result.get_asset_check_evaluations()
            # For a range, the result of a check over all of it; Dagster shows each hour's evaluation.
            if check.partition is None or from_key == to_key
        ),
        metadata=metadata,
    )


def chain_selection(settings: Settings, timescale: str = SECONDS, *, market_only: bool = False) -> list[str]:
    """Return the assets of a timescale, from ticks or candles to model card and performance of its chains.

    Args:
        settings: the configuration.
        timescale: ``seconds`` or ``minutes``.
        market_only: stop at labels and drift scores.

    Raises:
        NothingToDo: there is no such timescale.
    """
    specs = specs_of(settings, timescale)
    market = market_assets(specs)
    if market_only:
        return list(market)
    training = [asset for spec in specs for asset in training_selection(settings, spec)]
    return [*market, *training, *(spec.asset("performance") for spec in specs)]


def training_selection(settings: Settings, spec: TimescaleSpec) -> list[str]:
    """Return the assets of a chain from splits to the model card."""
    return [*spec.training_assets(models_of(settings, spec).enabled), spec.asset("model_card")]


def splits_are_current(settings: Settings, key: str, chain_name: str = SECONDS) -> bool:
    """Return whether the splits of a partition were computed from the rows that are there now."""
    lake, spec = Lake(settings.storage.lake_dir), spec_of(settings, chain_name)
    if not lake.exists(spec.asset("splits"), key, "json"):
        return False
    stored = plans.read_plan(lake, spec, key)
    return stored == plans.plan_split(lake, spec, key)


def models_are_current(settings: Settings, key: str, chain_name: str = SECONDS) -> bool:
    """Return whether every enabled model of a partition was trained on the rows that are there now."""
    if not splits_are_current(settings, key, chain_name):
        return False
    lake, spec = Lake(settings.storage.lake_dir), spec_of(settings, chain_name)
    plan = plans.read_plan(lake, spec, key)
    return not outdated_models(lake, spec, plan, models_of(settings, spec).enabled)
