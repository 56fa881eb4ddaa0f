"""A data folder of its own for a synthetic market, so that it never mixes with a recorded one."""

from __future__ import annotations

import os
from pathlib import Path

from ingestor.settings import Settings, load_settings
from ingestor.settings.sections import EMBEDDED

#: Of `cryptovol up --simulate`, beside the folders of the demo and of the real market.
SIMULATED_DIR = Path("data/simulated")
#: An hour closes only when the feed has passed its end by two minutes.
TAIL_HOURS = 0.05


def synthetic_settings(folder: Path, *, own_reports: bool = False) -> Settings:
    """Give the configuration with a data folder of its own and the embedded broker; children read the same.

    Args:
        folder: relative to the configuration file, else to the working directory.
        own_reports: keep reports and exported models in that folder, too.
    """
    base = load_settings()
    data = (base.config_file.parent if base.config_file else Path.cwd()) / folder
    os.environ["CRYPTOVOL__STORAGE__DATA_DIR"] = str(data)
    os.environ["CRYPTOVOL__KAFKA__BOOTSTRAP_SERVERS"] = EMBEDDED
    if own_reports:
        os.environ["CRYPTOVOL__STORAGE__REPORTS_DIR"] = str(data / "reports")
        os.environ["CRYPTOVOL__STORAGE__ARTIFACTS_DIR"] = str(data / "models")
    # A Dagster home of the user's shall not fill with synthetic runs.
    os.environ.pop("DAGSTER_HOME", None)
    return load_settings().settings
