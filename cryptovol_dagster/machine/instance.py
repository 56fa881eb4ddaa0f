"""The Dagster instance of this machine: its folder, its settings, and who runs it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from cryptovol_dagster.lake.atomic import replace_file
from ingestor import locks
from ingestor.errors import CryptovolError
from ingestor.settings import Settings
from ingestor.synthetic import is_synthetic

if TYPE_CHECKING:
    import dagster as dg

#: The same as docker/dagster.yaml but for where things are stored; a test holds them together.
DAGSTER_YAML = """\
# Written by cryptovol on first use; yours to change. Unchanged, it is brought up to date by later versions.
telemetry:
  enabled: false
# No invitation to a mailing list over the first page.
nux:
  enabled: false

scheduler:
  module: dagster.core.scheduler
  class: DagsterDaemonScheduler
  config:
    max_catchup_runs: 1   # a machine that was off retrains once, not once for each hour missed

# Every asset is in the pool `market` (gap ledger to labels) or `training` (the rest). A run takes the pools
# of all its assets for as long as it lasts: hours are made one after the other (each reads the one before),
# so are models (memory), and a long retrain does not hold up the newest hour.
concurrency:
  runs:
    max_concurrent_runs: 2
  pools:
    granularity: run
    default_limit: 1

# A run that hangs must not hold its pools for ever. A backfill of months may take longer: give it the tag
# dagster/max_runtime (seconds).
run_monitoring:
  enabled: true
  start_timeout_seconds: 300
  cancel_timeout_seconds: 180
  max_runtime_seconds: 21600
  poll_interval_seconds: 60
# A run whose worker died (kill, power, memory) is tried again; one whose code failed is not.
run_retries:
  enabled: true
  max_retries: 2
  retry_on_asset_or_op_failure: false

# Ticks only: Dagster keeps the event log for ever, so what assets report is small.
retention:
  schedule:
    purge_after_days: 90
  sensor:
    purge_after_days:
      skipped: 7
      failure: 30
      success: -1
"""
#: SHA-256 of files of earlier versions: such a file is unchanged and may be replaced.
EARLIER_YAML = frozenset(
    {
        "e3debc3929289db6b91e0c498dce5abd30185a4a7a6cbd4f8fb591503cab33a8",
        "254fef233486f95043072d4bac7d9d826b0d00e3323db25875131d5902d86452",
    }
)
_LOCK = "up.lock"
_OPENING_LOCK = "opening.lock"


class InstanceError(CryptovolError):
    """The Dagster home cannot be used; the message is one line."""


@dataclass(frozen=True)
class Running:
    """Supervisor of the instance, and its addresses.

    Attributes:
        pid: of the supervisor (`cryptovol up` or `cryptovol ui`).
        dagster_url: the Dagster UI.
        mlflow_url: the MLflow UI.
        services: its services, by name; empty where an earlier version wrote this.
        began_s: when it began (seconds since the epoch).
    """

    pid: int
    dagster_url: str
    mlflow_url: str
    services: tuple[str, ...] = ()
    began_s: float = 0.0


def dagster_home(settings: Settings) -> Path:
    """Return the Dagster instance's folder: ``$DAGSTER_HOME``, else ``dagster_home`` in the data folder.

    A synthetic market is always run by the home in its own folder: a variable that is exported for the real
    market must not mix the two.
    """
    named = None if is_synthetic(settings) else os.environ.get("DAGSTER_HOME")
    return Path(named).expanduser().resolve() if named else settings.storage.data_dir / "dagster_home"


def ensure_dagster_home(settings: Settings) -> Path:
    """Create the Dagster home and its ``dagster.yaml``, or update that of an earlier version.

    A ``dagster.yaml`` with changes of a user is kept; `own_config_note` reports it.

    Raises:
        InstanceError: the folder cannot be written.
    """
    home = dagster_home(settings)
    config = home / "dagster.yaml"
    try:
        if not config.exists() or hashlib.sha256(config.read_bytes()).hexdigest() in EARLIER_YAML:
            replace_file(config, DAGSTER_YAML.encode())
    except OSError as error:
        raise InstanceError(
            f"{home}: cannot contain the Dagster instance: {error.strerror or error}; name a writable "
            "folder as DAGSTER_HOME or storage.data_dir"
        ) from error
    return home


@contextmanager
def opening(home: Path) -> Iterator[None]:
    """Lock the opening of the instance, until it is open.

    The first process that opens a home creates its SQLite databases: tables, then the revision of their
    schema. Another process that reads between the two treats the tables as those of an old Dagster and adds
    that one's revision. From then on nothing can open the home ("more than one head present").

    Raises:
        InstanceError: the home cannot be written.
    """
    with _lock_file(home / _OPENING_LOCK) as file:
        locks.lock(file)
        yield


@contextmanager
def open_instance(home: Path) -> Iterator[dg.DagsterInstance]:
    """Open the instance of a home, safely beside others that do so for the first time.

    Raises:
        InstanceError: the home cannot be written.
    """
    import dagster as dg  # takes a second, which callers that only read the folder need not spend

    with opening(home):
        instance = dg.DagsterInstance.from_config(str(home))
    with instance:
        yield instance


def own_config_note(home: Path) -> str | None:
    """Return a note that the home's ``dagster.yaml`` has changes of a user; None where it has none."""
    config = home / "dagster.yaml"
    if config.read_bytes() == DAGSTER_YAML.encode():
        return None
    return (
        f"{config} has your own changes and was kept; remove it to get the settings of this version "
        "(pools, run monitoring, retries)"
    )


@contextmanager
def hold_instance(
    home: Path, dagster_url: str, mlflow_url: str, services: Sequence[str] = ()
) -> Iterator[None]:
    """Lock the instance for one supervisor: a second daemon would launch every run twice.

    Args:
        home: the instance's folder.
        dagster_url: where Dagster can be opened.
        mlflow_url: where MLflow can be opened.
        services: names of those kept running.

    Raises:
        InstanceError: another supervisor holds it, or it cannot be written.
    """
    path = home / _LOCK
    with _lock_file(path) as file:
        if not locks.try_lock(file):
            running = _read_lock(path)
            by = f"pid {running.pid}, {running.dagster_url}" if running else "it has just begun"
            stop = f"use it, or stop it: Ctrl-C there, or `kill {running.pid}`" if running else "try again"
            raise InstanceError(
                f"{home} is in use: `cryptovol up` or `cryptovol ui` runs already ({by}); {stop}"
            )
        file.truncate(0)
        running = Running(os.getpid(), dagster_url, mlflow_url, tuple(services), time.time())
        file.write(json.dumps(asdict(running)))
        file.flush()
        yield


def running_instance(settings: Settings) -> Running | None:
    """Return the supervisor of the instance; None where there is none, or before its record (`is_held`)."""
    return _read_lock(dagster_home(settings) / _LOCK) if is_held(settings) else None


def is_held(settings: Settings) -> bool:
    """Return whether the instance has a supervisor, also one that has not written its record yet."""
    path = dagster_home(settings) / _LOCK
    return path.exists() and locks.is_locked(path)


def _lock_file(path: Path) -> TextIO:
    """Open a file to lock, without changing its content.

    Raises:
        InstanceError: it cannot be written.
    """
    try:
        return path.open("a+")
    except OSError as error:
        raise InstanceError(f"{path} cannot be written: {error.strerror}") from error


def _read_lock(path: Path) -> Running | None:
    """Read the holder's record; None while it is not written yet."""
    text = path.read_text()
    if not text:
        return None
    found = json.loads(text)
    return Running(**{**found, "services": tuple(found.get("services", ()))})
