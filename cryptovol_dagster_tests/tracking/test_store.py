"""MLflow's local store is made once, and nobody looks at it while another process makes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cryptovol_dagster.tracking.store import is_prepared, local_store, prepare_store
from cryptovol_dagster_tests.synthetic import small_settings
from ingestor.settings.sections import MlflowSettings

#: Says that it begins, takes a second to make the store, and holds it for itself that long.
MAKER = """
import sys, time
from pathlib import Path
from cryptovol_dagster.tracking import store
file = Path(sys.argv[1])
with store._only_one(file):
    print("begun", flush=True)
    time.sleep(1)
    file.touch()
"""


def test_the_store_has_the_experiment_with_artifacts_in_the_data_folder(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    settings = small_settings(tmp_path)
    store = local_store(settings)
    assert store is not None
    assert not is_prepared(store)
    killed = store.with_suffix(".unfinished")  # of a process that was killed while it made the store
    killed.write_bytes(b"half a store")
    prepare_store(settings)
    prepare_store(settings)
    assert is_prepared(store)
    assert not killed.exists()
    client = MlflowClient(tracking_uri=settings.mlflow_tracking_uri)
    experiment = client.get_experiment_by_name(settings.mlflow.experiment)
    assert experiment is not None
    assert experiment.artifact_location.startswith(settings.storage.data_dir.as_uri())


def test_whoever_asks_while_it_is_made_waits_until_it_is_there(tmp_path: Path) -> None:
    store = tmp_path / "mlflow" / "mlflow.db"
    command = (sys.executable, "-c", MAKER, str(store))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "begun\n"
        assert is_prepared(store)


def test_a_store_that_a_server_keeps_is_not_ours_to_make(tmp_path: Path) -> None:
    server = MlflowSettings(tracking_uri="http://127.0.0.1:9")
    settings = small_settings(tmp_path).model_copy(update={"mlflow": server})
    assert local_store(settings) is None
    prepare_store(settings)
