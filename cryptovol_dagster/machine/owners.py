"""Data folder of a Dagster or MLflow that was not started by `cryptovol up` or `ui`.

Belongs here: requests to the service at an address, and the comparison with the configuration. A service
started by `cryptovol up` or `ui` needs no request: the lock of its Dagster home has its address
(`instance.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlencode, urlsplit

import yaml

from cryptovol_dagster.machine.instance import dagster_home
from cryptovol_dagster.machine.reachable import ask
from cryptovol_dagster.tracking.store import local_store
from ingestor.settings import Settings

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
OTHER_PROGRAM = "another program answers there"


def not_this_dagster(settings: Settings, url: str) -> str:
    """Return why the Dagster at an address is not that of this data folder; empty where it is.

    It is where its home is ours. It may be where its home is a folder of another machine or container, or
    where it does not tell: only of a deployment, whose address or tracking server is configured and does not
    come about by chance.
    """
    home = _home_of(url)
    if home is None:
        return OTHER_PROGRAM if _is_loopback(url) else ""
    is_deployment = not _is_loopback(url) or local_store(settings) is None
    if home == dagster_home(settings) or (is_deployment and not home.exists()):
        return ""
    return f"the Dagster that answers there has another home, {home}"


def not_this_mlflow(settings: Settings, url: str) -> str:
    """Return why the MLflow at an address has not this data folder's runs; empty where it has.

    A local store is recognised by where its experiment keeps files.
    """
    if local_store(settings) is None or not _is_loopback(url):
        return ""
    found = experiment(url, settings.mlflow.experiment)
    if found is None:
        return "the MLflow that answers there does not have this folder's runs"
    files = Path(unquote(urlsplit(found["artifact_location"]).path))
    if files.is_relative_to(settings.storage.data_dir):
        return ""
    return f"the MLflow that answers there keeps another folder's runs, {files}"


def experiment(url: str, name: str) -> Mapping[str, str] | None:
    """Ask an MLflow server for an experiment; None where it has none of this name, or does not answer."""
    found = ask(f"{url}/api/2.0/mlflow/experiments/get-by-name?{urlencode({'experiment_name': name})}")
    return found.get("experiment") if isinstance(found, dict) else None


def _home_of(url: str) -> Path | None:
    """Ask a webserver for its instance's folder; None where it does not answer that."""
    found = ask(f"{url}/graphql", {"query": "{instance{info}}"})
    try:
        info = yaml.safe_load(found["data"]["instance"]["info"])
        return Path(info["local_artifact_storage"]["config"]["base_dir"])
    except (KeyError, TypeError, yaml.YAMLError):
        return None


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK
