"""MLflow's local store: a SQLite file in the data folder, created by one process at a time.

MLflow creates some sixty tables in steps that another process may not see half done: a server that started
beside the first run ended with "Circular dependency detected", and so did the run.

    python -m cryptovol_dagster.tracking.store     create the configured store, where it is a local one
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingestor import locks
from ingestor.settings import Settings

_SCHEME = "sqlite:///"
_LOCK = "opening.lock"


def local_store(settings: Settings) -> Path | None:
    """Return the file of a local store; None where a server has it."""
    uri = settings.mlflow_tracking_uri
    return Path(uri.removeprefix(_SCHEME)) if uri.startswith(_SCHEME) else None


def is_prepared(store: Path) -> bool:
    """Return whether a local store exists and is complete; wait while another process creates it."""
    with _only_one(store):
        return store.exists()


def prepare_store(settings: Settings) -> None:
    """Create a local store and its experiment; artifacts stay inside the data folder.

    Raises:
        MlflowException: the store cannot be opened.
    """
    store = local_store(settings)
    if store is None:
        return
    with _only_one(store):
        if store.exists():
            _add_experiment(settings, store)
            return
        # Elsewhere first: a process killed in between leaves no incomplete store under the name.
        unfinished = store.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        _add_experiment(settings, unfinished)
        unfinished.replace(store)


def _add_experiment(settings: Settings, store: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"{_SCHEME}{store}")
    if client.get_experiment_by_name(settings.mlflow.experiment) is None:
        artifacts = settings.storage.data_dir / "mlflow" / "artifacts"
        client.create_experiment(settings.mlflow.experiment, artifact_location=artifacts.as_uri())


@contextmanager
def _only_one(store: Path) -> Iterator[None]:
    store.parent.mkdir(parents=True, exist_ok=True)
    with (store.parent / _LOCK).open("a+") as file:
        locks.lock(file)
        yield


if __name__ == "__main__":
    from ingestor.settings import load_settings

    prepare_store(load_settings().settings)
