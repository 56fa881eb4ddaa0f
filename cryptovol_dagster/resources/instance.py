"""The Dagster instance of this machine: its folder and the settings that the pipeline relies on."""

from __future__ import annotations

import os
from pathlib import Path

from cryptovol_dagster.resources.lake import replace_file
from ingestor.settings import Settings

#: Hour h reads hour h−1, so runs are worked off one at a time, oldest first, and a run asked for by the
#: closed-hour sensor goes before a long backfill (tag dagster/priority).
DAGSTER_YAML = """\
# Written by cryptovol on first use; yours to change.
telemetry:
  enabled: false
scheduler:
  module: dagster.core.scheduler
  class: DagsterDaemonScheduler
  config:
    max_catchup_runs: 1   # a machine that was off retrains once, not once for each hour missed
concurrency:
  runs:
    max_concurrent_runs: 1   # an hour reads the one before it, so hours run in order
retention:
  schedule:
    purge_after_days: 90
  sensor:
    purge_after_days:
      skipped: 7
      failure: 30
      success: -1
"""


class InstanceError(Exception):
    """The Dagster home cannot be used; the message is one line."""


def dagster_home(settings: Settings) -> Path:
    """Give the Dagster instance's folder: ``$DAGSTER_HOME``, else ``dagster_home`` in the data folder."""
    named = os.environ.get("DAGSTER_HOME")
    return Path(named).expanduser().resolve() if named else settings.storage.data_dir / "dagster_home"


def ensure_dagster_home(settings: Settings) -> Path:
    """Create the Dagster home and its ``dagster.yaml`` where they are missing; an existing one is left alone.

    Raises:
        InstanceError: the folder cannot be written.
    """
    home = dagster_home(settings)
    config = home / "dagster.yaml"
    try:
        if not config.exists():
            replace_file(config, DAGSTER_YAML.encode())
    except OSError as error:
        raise InstanceError(f"{home}: cannot hold the Dagster instance: {error.strerror or error}") from error
    return home
