"""Materializing assets in process, on the instance that `cryptovol ui` shows: same code, same lineage."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import dagster as dg

from cryptovol_dagster.defs.build import TIMESCALE, build_defs
from cryptovol_dagster.resources import chain
from cryptovol_dagster.resources.failures import error_line, failure_line, step_name
from cryptovol_dagster.resources.instance import ensure_dagster_home
from cryptovol_dagster.resources.lake import Lake, hour_keys, hour_window
from cryptovol_dagster.resources.raw import RawStore
from cryptovol_dagster.resources.specs import timescale_spec
from ingestor.settings import Settings

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
MARKET = (
    "gap_ledger",
    "ticks",
    *(f"{TIMESCALE}/{name}" for name in ("bars", "features", "labels", "drift_scores")),
)


class RunFailed(Exception):  # noqa: N818 - named for what it says
    """A Dagster run failed; the message is its root cause in one line."""


class NothingToDo(Exception):  # noqa: N818 - named for what it says
    """There is no partition to work on; the message says what to do first."""


@dataclass(frozen=True)
class CheckOutcome:
    """One evaluation of an asset check.

    Attributes:
        asset: key of the asset.
        name: of the check.
        passed: whether it passed.
        severity: ``ERROR`` or ``WARN``.
        description: what was expected, found and where, when it failed.
    """

    asset: str
    name: str
    passed: bool
    severity: str
    description: str


@dataclass(frozen=True)
class RunSummary:
    """What a run did.

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
        """Hours on which nothing could be trained, and why."""
        splits = self.metadata.get(f"{TIMESCALE}/splits", {})
        return {k: found["reason"] for k, found in splits.items() if found["status"] == chain.NOT_TRAINABLE}

    @property
    def carried(self) -> dict[str, str]:
        """Hours between two trainings, and the hour whose models hold on there (or ``none``)."""
        splits = self.metadata.get(f"{TIMESCALE}/splits", {})
        return {k: found["models_of"] for k, found in splits.items() if found["status"] == chain.CARRIED}

    @property
    def checks_failed(self) -> tuple[CheckOutcome, ...]:
        """Checks that did not pass, warnings included."""
        return tuple(check for check in self.checks if not check.passed)

    def to_dict(self) -> dict[str, Any]:
        """Give the JSON-able form."""
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
    """Materialize assets, and evaluate their checks, over a range of hours in one run.

    Args:
        settings: the configuration; its Dagster instance is used (``$DAGSTER_HOME``, else in the data
            folder).
        from_key: first hour, e.g. ``2026-04-04-03:00``.
        to_key: last hour, inclusive. The same as `from_key` for a single partition.
        selection: asset keys as users write them, e.g. ``["ticks", "seconds/bars"]``.
        defs: the code location to run, when it has been built before.
        tags: of the run, besides those of a range.
        on_asset: told each asset that is done, and the seconds it took; called from another thread.

    Raises:
        LakeError: a key is no hour.
        NothingToDo: the range is empty or outside the configured partitions.
        RunFailed: a step or a blocking check failed.
        InstanceError: the Dagster home cannot be used.
    """
    _validate_range(settings, from_key, to_key)
    job = (defs or build_defs(settings)).resolve_implicit_global_asset_job_def()
    one = from_key == to_key
    home = ensure_dagster_home(settings)
    run_id = str(uuid4())
    with (
        quiet_dagster(),
        dg.DagsterInstance.from_config(str(home)) as instance,
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


def _validate_range(settings: Settings, from_key: str, to_key: str) -> None:
    hour_window(from_key)
    hour_window(to_key)
    if from_key > to_key:
        raise NothingToDo(f"the range is empty: {from_key} is after {to_key}")
    if from_key < settings.dagster.partitions_start:
        raise NothingToDo(
            f"{from_key} is before dagster.partitions_start, {settings.dagster.partitions_start}"
        )
    if hour_window(to_key)[0] > time.time_ns():
        raise NothingToDo(f"{to_key} lies in the future")


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


def newest_labelled(settings: Settings) -> str:
    """Give the newest hour with labels, which is what `train` works on by default.

    Raises:
        NothingToDo: there is none.
    """
    keys = Lake(settings.storage.lake_dir).partitions(f"{TIMESCALE}/labels")
    if not keys:
        raise NothingToDo(
            f"{settings.storage.lake_dir} holds no labels yet: record with `cryptovol ingest`, then run "
            "`cryptovol backfill --from HOUR --to HOUR`"
        )
    return keys[-1]


def recorded_hours(settings: Settings) -> list[str]:
    """List the hours for which raw storage holds ticks, closed or not, oldest first."""
    return RawStore(settings.storage.raw_dir).hours_with_ticks()


def root_cause(result: dg.ExecuteInProcessResult) -> str:
    """Give the first failing step, and its message in one line."""
    failures = [event for event in result.all_events if event.is_step_failure]
    if not failures:
        return _before_any_step(result)
    return f"{step_name(failures[0])}: {failure_line(failures[0])}"


def _before_any_step(result: dg.ExecuteInProcessResult) -> str:
    """Say what failed where no step did: a resource that could not be made, most of all MLflow."""
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
    start, _ = hour_window(from_key)
    _, end = hour_window(to_key)
    return RunSummary(
        run_id=result.run_id,
        partitions=tuple(hour_keys(start, end)),
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
        ),
        metadata=metadata,
    )


def chain_selection(settings: Settings, *, market_only: bool = False) -> list[str]:
    """Give the assets of the chain, from ticks to the model card."""
    if market_only:
        return list(MARKET)
    models = [f"{TIMESCALE}/model_{name}" for name in settings.models.enabled]
    return [
        *MARKET,
        f"{TIMESCALE}/splits",
        *models,
        f"{TIMESCALE}/model_evaluation",
        f"{TIMESCALE}/champion",
        f"{TIMESCALE}/model_card",
    ]


def ranges_to_fill(
    settings: Settings, from_key: str | None, to_key: str | None, only_missing: bool, market_only: bool
) -> list[tuple[str, str]]:
    """Give the ranges (first and last hour) a backfill works off, oldest first.

    Raises:
        NothingToDo: nothing was recorded, or the range is empty.
        LakeError: a key is no hour.
    """
    if from_key is None or to_key is None:
        recorded = recorded_hours(settings)
        if not recorded:
            raise NothingToDo(f"{settings.storage.raw_dir} holds no ticks: record with `cryptovol ingest`")
        from_key, to_key = from_key or recorded[0], to_key or recorded[-1]
    _validate_range(settings, from_key, to_key)
    _require_recorded(settings, from_key, to_key)
    if not only_missing:
        return [(from_key, to_key)]
    lake = Lake(settings.storage.lake_dir)
    ranges: list[tuple[str, str]] = []
    before = None
    for key in hour_keys(hour_window(from_key)[0], hour_window(to_key)[1]):
        trained = market_only or lake.exists(f"{TIMESCALE}/splits", key, "json")
        if lake.exists(f"{TIMESCALE}/labels", key) and trained:
            before = None
        else:
            ranges.append((key, key)) if before is None else ranges.append((ranges.pop()[0], key))
            before = key
    return ranges


def _require_recorded(settings: Settings, from_key: str, to_key: str) -> None:
    raw = RawStore(settings.storage.raw_dir)
    hours = sorted(raw.recorded_hours() | {hour.hour for hour in raw.closed_hours()})
    if not any(from_key <= hour <= to_key for hour in hours):
        held = f"it holds {hours[0]} … {hours[-1]}" if hours else "it is empty"
        raise NothingToDo(
            f"{settings.storage.raw_dir}: nothing was recorded in {from_key} … {to_key}; {held}"
        )


def splits_are_current(settings: Settings, key: str) -> bool:
    """Tell whether the splits of an hour were made from the rows that are there now."""
    lake = Lake(settings.storage.lake_dir)
    if not lake.exists(f"{TIMESCALE}/splits", key, "json"):
        return False
    spec = timescale_spec(settings.timescales.seconds, TIMESCALE)
    stored = chain.read_plan(lake, spec, key)
    return stored == chain.plan_split(lake, spec, key)


def models_are_current(settings: Settings, key: str) -> bool:
    """Tell whether every enabled model of an hour was trained on the rows that are there now."""
    if not splits_are_current(settings, key):
        return False
    lake, spec = Lake(settings.storage.lake_dir), timescale_spec(settings.timescales.seconds, TIMESCALE)
    plan = chain.read_plan(lake, spec, key)
    return not chain.outdated_models(lake, spec, plan, settings.models.enabled)
