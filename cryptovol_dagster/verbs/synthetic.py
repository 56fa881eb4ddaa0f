"""A synthetic market has a folder of its own, configuration included: it never mixes with a recorded one.

Every verb works on it by ``--config``: `cryptovol --config data/demo/config.yaml ui`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import yaml

from cryptovol_dagster.core.times import DAY_FORMAT, KEY_FORMAT
from cryptovol_dagster.machine.instance import InstanceError, is_held, running_instance
from ingestor import locks
from ingestor.archive.member_name import archive_runs
from ingestor.errors import USAGE, CryptovolError
from ingestor.settings import Settings, load_settings
from ingestor.settings.load import ENV_CONFIG_FILE, ENV_PREFIX
from ingestor.synthetic import MARKET_LOCK

DEMO_DIR = Path("data/demo")
#: Of `cryptovol up --simulate`.
SIMULATED_DIR = Path("data/simulated")
#: An hour closes only when the feed has passed its end by two minutes.
TAIL_HOURS = 0.05
#: Hours of a running market between two retrains: the hourly schedule knows the wall clock only.
RETRAIN_EVERY_HOURS = 3
#: The audit of an hour reads checkpoints of the hour around it; at 600 times the speed 10 s are longer.
CHECKPOINT_S = 0.5
#: Between two trainings of a run over a range, which also trains at its end. The usual one is as of the hour
#: after midnight. That may be the market's first, and a champion of one hour has no operating point.
_ONLY_AT_THE_END_H = 1_000_000
_HEADER = (
    "# The configuration of the synthetic market in this folder; rewritten by each {by}.\n"
    "# Any verb works on it: cryptovol --config {path} status\n"
)
#: Settings that a synthetic market does not share with the real one: feed, broker, alerts, tracking server.
_OWN: Mapping[str, tuple[str, ...]] = {
    "coinbase": ("url",),
    "kafka": ("bootstrap_servers", "security", "topic_prefix"),
    "monitoring": ("alert_webhook_url",),
    "alerts": ("targets", "rules"),
    "mlflow": ("tracking_uri",),
    "dagster": ("report_closed_hours", "partitions_end"),
}


class NoMarketError(CryptovolError):
    """There is no synthetic market here yet; the message contains how to create one."""


class NestedMarketError(CryptovolError):
    """The effective configuration is that of a synthetic market, which cannot contain another one."""

    exit_code = USAGE


def config_path(folder: Path) -> Path:
    """Return the path of a market's configuration: beside the effective one, else here.

    Raises:
        NestedMarketError: the effective configuration is a synthetic market's.
    """
    base = load_settings().config_file
    if base is not None and (base.parent / MARKET_LOCK).exists():
        raise NestedMarketError(
            f"{base} is the configuration of a synthetic market, and {folder} would be in that market's "
            f"folder; omit --config (and ${ENV_CONFIG_FILE})"
        )
    return (base.parent if base else Path.cwd()) / folder / "config.yaml"


def create_market(folder: Path, start: datetime, *, by: str) -> Settings:
    """Empty the folder and write its configuration, which this process and its children use from then on.

    It is the effective one, but data, reports and models are in the folder.

    Args:
        folder: of the market, e.g. `DEMO_DIR`.
        start: first full hour of the market, UTC; its partitions begin there.
        by: the command that creates the market, for messages.

    Raises:
        NestedMarketError: the effective configuration is a synthetic market's.
        InstanceError: something that runs uses the folder (nothing was removed), or it cannot be written.
    """
    with creating_market(folder, start, None, by=by) as settings:
        return settings


@contextmanager
def creating_market(folder: Path, start: datetime, end: datetime | None, *, by: str) -> Iterator[Settings]:
    """Create a market as `create_market` does, and lock it until the block ends.

    Args:
        folder: of the market.
        start: first full hour of the market, UTC.
        end: end of its last full hour, and of its partitions.
        by: the command that creates the market, for messages.

    Raises:
        NestedMarketError: the effective configuration is a synthetic market's.
        InstanceError: something that runs uses the folder (nothing was removed), or it cannot be written.
    """
    path = config_path(folder)
    os.environ.pop("DAGSTER_HOME", None)  # synthetic runs must not fill the user's home
    content = _HEADER.format(by=f"`{by}`", path=folder / path.name) + _own_configuration(start, end)
    with _held(path.parent, by):
        require_unused(path.parent, by)
        with _changing(path.parent):
            for entry in path.parent.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name != MARKET_LOCK:
                    entry.unlink()
            path.write_text(content, encoding="utf-8")
        yield _use(path)


def open_market(folder: Path, *, by: str) -> Settings:
    """Use the configuration of an existing market, in this process and its children.

    Args:
        folder: of the market.
        by: the command that creates it, for the message.

    Raises:
        NoMarketError: there is none.
    """
    path = config_path(folder)
    if not path.is_file():
        raise NoMarketError(f"{path.parent} contains no synthetic market yet: `{by}` creates one")
    return _use(path)


def require_unused(folder: Path, by: str) -> None:
    """Check that neither a recorder nor `up` or `ui` uses a market.

    Args:
        folder: of the market.
        by: the command that waits for it, for the message.

    Raises:
        InstanceError: something uses it.
    """
    settings = Settings.model_validate({"storage": {"data_dir": folder}})
    running = running_instance(settings)
    if running is not None or is_held(settings):
        who = f"pid {running.pid}, {running.dagster_url}" if running else "it has just begun"
        raise InstanceError(f"{folder} is in use ({who}); stop that, then run `{by}` again")
    if archive_runs(settings.storage.raw_dir):
        raise InstanceError(f"{folder} is in use by a recorder; stop that, then run `{by}` again")


def require_created(settings: Settings) -> None:
    """Check that no command creates a synthetic market in the data folder just now.

    Raises:
        InstanceError: one does, and Dagster's daemon would compute the same hours.
    """
    lock = settings.storage.data_dir / MARKET_LOCK
    if lock.exists() and locks.is_locked(lock):
        with lock.open("rb") as file:
            raise InstanceError(f"{_creator(lock.parent, file)}; wait for its end")


def _creator(folder: Path, lock: IO[bytes]) -> str:
    who = locks.read_holder(lock) or "it has just begun"
    return f"{folder} is in use: another command creates a market there ({who})"


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Convert errors of removing and writing to one line with the path.

    Raises:
        InstanceError: the system refuses it.
    """
    try:
        yield
    except OSError as error:
        raise InstanceError(
            f"{error.filename or folder} cannot be removed or written: {error.strerror or error}"
        ) from error


@contextmanager
def _held(folder: Path, by: str) -> Iterator[None]:
    """Lock a folder for the creation of a market.

    Raises:
        InstanceError: another one does, or the folder cannot be written.
    """
    with _changing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / MARKET_LOCK).open("a+b", buffering=0)
    with file:
        if not locks.try_lock(file):
            raise InstanceError(f"{_creator(folder, file)}; wait or stop that, then run `{by}` again")
        locks.write_holder(file)
        yield


def _own_configuration(start: datetime, end: datetime | None) -> str:
    """Write the effective configuration as YAML, with the settings of a synthetic market."""
    values = _changed(load_settings().settings.model_dump(mode="json"), Settings().model_dump(mode="json"))
    for section, keys in _OWN.items():
        values[section] = {key: value for key, value in values.get(section, {}).items() if key not in keys}
    values["storage"] = values.get("storage", {}) | {
        "data_dir": ".",
        "reports_dir": "reports",
        "artifacts_dir": "models",
    }
    values["dagster"] |= {
        "partitions_start": start.strftime(KEY_FORMAT),
        "minutes_start": start.strftime(DAY_FORMAT),
    }
    values["history"] = values.get("history", {}) | {"first_import_days": 0}
    values["ingest"] = values.get("ingest", {}) | {"checkpoint_s": CHECKPOINT_S}
    if end is None:
        values["dagster"]["retrain_every_closed_hours"] = RETRAIN_EVERY_HOURS
    else:
        values["dagster"]["partitions_end"] = end.strftime(KEY_FORMAT)
        seconds = values.setdefault("timescales", {}).setdefault("seconds", {})
        seconds["retrain_every_hours"] = _ONLY_AT_THE_END_H
    return yaml.safe_dump({section: keys for section, keys in values.items() if keys}, sort_keys=False)


def _use(path: Path) -> Settings:
    # The file is complete: values of the environment were written there, or are for the real market.
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


def remove_markets(folders: Iterable[Path], by: str) -> None:
    """Remove synthetic markets, unless something uses one of them.

    Raises:
        InstanceError: something does (nothing was removed), or one cannot be removed.
    """
    there = [folder for folder in folders if folder.exists()]
    with ExitStack() as held:
        for folder in there:
            held.enter_context(_held(folder, by))
            require_unused(folder, by)
        for folder in there:
            with _changing(folder):
                shutil.rmtree(folder)


if __name__ == "__main__":  # of `make clean`
    try:
        remove_markets(map(Path, sys.argv[1:]), "make clean")
    except CryptovolError as error:
        sys.exit(f"Error: {error}")
