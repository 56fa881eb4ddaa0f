"""The alias `champion` by MLflow's REST interface, for processes that run for weeks.

MLflow's client would take hundreds of megabytes, for one request every few seconds.
"""

from __future__ import annotations

from cryptovol_dagster.core.promotion.decision import Champion
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.http_client import AttemptError, open_client
from cryptovol_dagster.tracking.registry import CHAMPION, RegistryError, champion_of, registered_name

_PATH = "/api/2.0/mlflow/registered-models/alias"
_TIMEOUT_S = 3.0


def has_server(tracking_uri: str) -> bool:
    """Return whether a tracking address is a server, which can be asked; a database file cannot."""
    return tracking_uri.startswith(("http://", "https://"))


def champion_by_alias(tracking_uri: str, spec: TimescaleSpec, alias: str = CHAMPION) -> Champion | None:
    """Return the model to which an alias of a chain's registered model points; None where it has none.

    Raises:
        AttemptError: MLflow does not answer, or refuses.
        RegistryError: the version was not registered by cryptovol.
    """
    import httpx

    name = registered_name(spec)
    try:
        with open_client(_TIMEOUT_S) as client:
            answer = client.get(tracking_uri.rstrip("/") + _PATH, params={"name": name, "alias": alias})
            body = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise AttemptError(f"MLflow does not say which version is {alias}: {error}") from error
    if answer.status_code != httpx.codes.OK:
        if body.get("error_code") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise AttemptError(f"MLflow does not say which version is {alias}: HTTP {answer.status_code}")
    try:
        version = body["model_version"]
        tags = {tag["key"]: tag["value"] for tag in version.get("tags", ())}
        return champion_of(name, str(version["version"]), str(version.get("run_id", "")), tags)
    except (KeyError, TypeError, ValueError) as error:
        raise RegistryError(f"{name}: alias {alias} has an unreadable version: {error!r}") from error
