"""What reaches an MLflow run: results on the parent, section by section, in as few calls as may be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from cryptovol_dagster.tracking.results import Results
from cryptovol_dagster.tracking.runs import NOTE, Tracking
from cryptovol_dagster_tests.synthetic import small_settings


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")


@pytest.fixture
def tracking(client: mlflow.MlflowClient, tmp_path: Path) -> Tracking:
    number = client.create_experiment(tmp_path.name, (tmp_path / "artifacts").as_uri())
    parent = client.create_run(number)
    known = SimpleNamespace(active_run=lambda: parent, tracking_client=client)
    return Tracking(known, small_settings(tmp_path), "dagster-run")


def test_sections_stand_one_below_the_other_and_a_later_one_replaces_its_own(tracking: Tracking) -> None:
    tracking.show(Results("minutes evaluation", "old"))
    tracking.show(Results("minutes decision", "HOLD", tags={"minutes.decision": "HOLD"}))
    tracking.show(Results("minutes evaluation", "new"))
    tags = tracking.client.get_run(tracking.parent_run_id).data.tags
    assert tags[NOTE] == "new\n\nHOLD"
    assert tags["minutes.decision"] == "HOLD"


def test_a_number_that_is_none_or_infinite_is_left_out(tracking: Tracking) -> None:
    tracking.show(Results(metrics={"a/b": 0.5, "a/none": None, "a/nan": float("nan")}))
    run = tracking.client.get_run(tracking.parent_run_id)
    assert run.data.metrics == {"a/b": 0.5}
    assert NOTE not in run.data.tags


def test_files_are_artifacts_in_their_folders(tracking: Tracking) -> None:
    tracking.show(Results(files={"seconds/card.md": b"# Card", "minutes/card.md": b"# Other"}))
    found = tracking.client.download_artifacts(tracking.parent_run_id, "seconds/card.md")
    assert Path(found).read_bytes() == b"# Card"


def test_links_open_the_view_for_model_training(tracking: Tracking) -> None:
    view = "?workflowType=machine_learning"
    assert tracking.run_url("abc").startswith(f"{tracking.ui_url}/#/experiments/")
    assert tracking.run_url("abc").endswith(f"/runs/abc{view}")
    assert tracking.version_url("m", "3") == f"{tracking.ui_url}/#/models/m/versions/3{view}"
