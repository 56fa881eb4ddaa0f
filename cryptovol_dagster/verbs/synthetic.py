"""A synthetic market has a folder of its own, configuration included: it never mixes with a recorded one.

Every verb works on it by ``--config``: `cryptovol --config data/demo/config.yaml ui`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from cryptovol_dagster.core.times import DAY_FORMAT, KEY_FORMAT
from cryptovol_dagster.machine.instance import InstanceError, running_instance
from ingestor.archive.member_name import archive_runs
from ingestor.errors import CryptovolError
from ingestor.settings import Settings, load_settings
from ingestor.settings.load import ENV_CONFIG_FILE, ENV_PREFIX

DEMO_DIR = Path("data/demo")
#: Of `cryptovol up --simulate`.
SIMULATED_DIR = Path("data/simulated")
#: An hour closes only when the feed has passed its end by two minutes.
TAIL_HOURS = 0.05
#: Hours of the market between two retrains: the hourly schedule knows only the clock on the wall.
RETRAIN_EVERY_HOURS = 3
#: The audit of an hour looks for checkpoints in the hour around it; at 600 times the speed 10 s are longer.
CHECKPOINT_S = 0.5
_HEADER = (
    "# The configuration of the synthetic market in this folder; written anew by each {by}.\n"
    "# Any verb works on it: cryptovol --config {path} status\n"
)
#: What a synthetic market does not share with the real one: its feed, broker, alerts and tracking server.
_OWN: Mapping[str, tuple[str, ...]] = {
    "coinbase": ("url",),
    "kafka": ("bootstrap_servers", "security", "topic_prefix"),
    "monitoring": ("alert_webhook_url",),
    "mlflow": ("tracking_uri",),
    "dagster": ("report_closed_hours",),
}


class NoMarketError(CryptovolError):
    """No synthetic market was made here yet; the message says how to make one."""


def config_path(folder: Path) -> Path:
    """Return where a market's configuration lies: beside the one in force, else here."""
    base = load_settings().config_file
    return (base.parent if base else Path.cwd()) / folder / "config.yaml"


def create_market(folder: Path, start: datetime, *, by: str) -> Settings:
    """Empty the folder and write its configuration, which this process and its children use from then on.

    It is the one in force, but data, reports and models lie in the folder.

    Args:
        folder: of the market, e.g. `DEMO_DIR`.
        start: first full hour of the market, UTC; its partitions begin there.
        by: the command that makes the market, for messages.

    Raises:
        InstanceError: something that runs uses the folder; nothing was removed.
    """
    path = config_path(folder)
    os.environ.pop("DAGSTER_HOME", None)  # a home of the user's shall not fill with synthetic runs
    values = _changed(load_settings().settings.model_dump(mode="json"), Settings().model_dump(mode="json"))
    for section, keys in _OWN.items():
        values[section] = {key: value for key, value in values.get(section, {}).items() if key not in keys}
    values["storage"] = values.get("storage", {}) | {
        "data_dir": ".",
        "reports_dir": "reports",
        "artifacts_dir": "models",
    }
    values["ingest"] = values.get("ingest", {}) | {"checkpoint_s": CHECKPOINT_S}
    values["dagster"] |= {
        "partitions_start": start.strftime(KEY_FORMAT),
        "minutes_start": start.strftime(DAY_FORMAT),
        "retrain_every_closed_hours": RETRAIN_EVERY_HOURS,
    }
    _require_unused(path.parent, by)
    if path.parent.exists():
        shutil.rmtree(path.parent)
    path.parent.mkdir(parents=True)
    shown = {section: keys for section, keys in values.items() if keys}
    header = _HEADER.format(by=f"`{by}`", path=folder / path.name)
    path.write_text(header + yaml.safe_dump(shown, sort_keys=False), encoding="utf-8")
    return _use(path)


def open_market(folder: Path, *, by: str) -> Settings:
    """Use the configuration of a market that was made before, in this process and its children.

    Args:
        folder: of the market.
        by: the command that makes it, for the message.

    Raises:
        NoMarketError: there is none.
    """
    path = config_path(folder)
    if not path.is_file():
        raise NoMarketError(f"{path.parent} holds no synthetic market yet: `{by}` makes one")
    return _use(path)


def _use(path: Path) -> Settings:
    # The file says all of it: what the environment adds was written there, or is meant for the real market.
    for name in [name for name in os.environ if name.upper().startswith(ENV_PREFIX)]:
        del os.environ[name]
    os.environ.pop("DAGSTER_HOME", None)
    os.environ[ENV_CONFIG_FILE] = str(path)
    return load_settings().settings


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from their defaults, section by section."""
    changed = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value = _changed(value, default)
            if not value:
                continue
        elif value == default:
            continue
        changed[key] = value
    return changed


def _require_unused(data_dir: Path, by: str) -> None:
    settings = Settings.model_validate({"storage": {"data_dir": data_dir}})
    running = running_instance(settings)
    if running is not None:
        who = f"pid {running.pid}, {running.dagster_url}"
        raise InstanceError(f"{data_dir} is in use ({who}); stop that, then `{by}` can replace it")
    if archive_runs(settings.storage.raw_dir):
        raise InstanceError(f"{data_dir} is in use by a recorder; stop that, then `{by}` can replace it")
