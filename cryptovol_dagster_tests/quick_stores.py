"""Stores of Dagster and MLflow in this process, without work that they repeat and no test needs.

Nothing a test asserts depends on it: without these patches each run of Dagster takes twice the CPU.
"""

from __future__ import annotations

import functools
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptovol_dagster.tracking import store
from ingestor import locks
from ingestor.settings import Settings


@pytest.fixture(scope="session")
def shared_by_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session; all workers of `pytest -n` have the same."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def quick_stores(shared_by_workers: Path) -> Iterator[None]:
    """Keep SQLite from waiting for the disk, and Dagster and MLflow from repeating what they know."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3.dbapi2, "connect", _without_waiting_for_disks(sqlite3.dbapi2.connect))
        template = shared_by_workers / "mlflow-tables.db"
        patch.setattr(store, "_add_experiment", _beginning_with(template, store._add_experiment))
        if "dagster" in sys.modules:  # tests that need none of it shall not wait for its import
            _let_dagster_remember(patch)
        yield


def _without_waiting_for_disks(
    connect: Callable[..., sqlite3.Connection],
) -> Callable[..., sqlite3.Connection]:
    """Leave out `fsync`, for which Dagster and MLflow wait at each event; a kill loses nothing by that."""

    @functools.wraps(connect)
    def opened(*arguments: Any, **named: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **named)
        connection.execute("PRAGMA synchronous=OFF")
        return connection

    return opened


def _let_dagster_remember(patch: pytest.MonkeyPatch) -> None:
    """Keep what Dagster builds again at each event: a database's engine and the list of its revisions."""
    from alembic.script import ScriptDirectory
    from dagster._core.storage.event_log.sqlite import sqlite_event_log
    from dagster._core.storage.runs.sqlite import sqlite_run_storage
    from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage

    revisions: dict[str | None, ScriptDirectory] = {}
    read = ScriptDirectory.from_config

    def from_config(config: Any) -> ScriptDirectory:
        folder = config.get_main_option("script_location")
        if folder not in revisions:
            revisions[folder] = read(config)
        return revisions[folder]

    patch.setattr(ScriptDirectory, "from_config", from_config)
    for module in (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage):
        patch.setattr(module, "create_engine", _remembering(module.create_engine))


def _remembering(create_engine: Callable[..., Any]) -> Callable[..., Any]:
    """Return the engine that a database has, with its compiled statements; it holds no connection."""
    engines: dict[str, Any] = {}

    def create(url: str, **named: Any) -> Any:
        if url not in engines:
            engines[url] = create_engine(url, **named)
        return engines[url]

    return create


def _beginning_with(template: Path, add_experiment: Callable[[Settings, Path], None]) -> Any:
    """Copy MLflow's empty tables into a new store: making them takes 3 s of CPU."""

    def add(settings: Settings, file: Path) -> None:
        if not file.exists():
            with template.with_suffix(".lock").open("a+") as lock:
                locks.lock(lock)
                if not template.exists():
                    _make_tables(template)
            shutil.copy(template, file)
        add_experiment(settings, file)

    return add


def _make_tables(template: Path) -> None:
    from mlflow import MlflowClient

    unfinished = template.with_suffix(".unfinished")
    MlflowClient(tracking_uri=f"sqlite:///{unfinished}").search_experiments()
    unfinished.rename(template)
