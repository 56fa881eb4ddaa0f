"""Whose Dagster and MLflow answer at an address: this folder's, another's, or another program."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from cryptovol_dagster.machine import owners
from cryptovol_dagster.machine.instance import dagster_home
from cryptovol_dagster.machine.services import Machine
from cryptovol_dagster_tests.synthetic import small_settings
from ingestor.settings import Settings
from ingestor.settings.sections import MlflowSettings


@contextmanager
def serving(answers: dict[str, Any]) -> Iterator[str]:
    """A web server that answers by path with JSON, and everything else with 404; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            self.send_response(404 if found is None else 200)
            self.end_headers()
            if found is not None:
                self.wfile.write(json.dumps(found).encode())

        do_POST = do_GET  # noqa: N815 - the name that http.server calls

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return small_settings(tmp_path)


def with_home(home: Path) -> dict[str, Any]:
    info = yaml.safe_dump({"local_artifact_storage": {"config": {"base_dir": str(home)}}})
    return {"/server_info": {}, "/graphql": {"data": {"instance": {"info": info}}}}


def test_a_dagster_is_ours_by_its_home(settings: Settings, tmp_path: Path) -> None:
    with serving(with_home(dagster_home(settings))) as url:
        assert owners.not_this_dagster(settings, url) == ""
    with serving(with_home(tmp_path)) as url:
        other = f"the Dagster that answers there has another home, {tmp_path}"
        assert owners.not_this_dagster(settings, url) == other
    with serving({"/server_info": {}}) as url:
        assert owners.not_this_dagster(settings, url) == owners.OTHER_PROGRAM


def test_only_a_deployment_is_believed_whose_home_is_not_here(settings: Settings, tmp_path: Path) -> None:
    """The containers of docker-compose publish their Dagster on loopback, too."""
    inside = tmp_path / "in" / "a" / "container"
    deployed = settings.model_copy(update={"mlflow": MlflowSettings(tracking_uri="http://127.0.0.1:9")})
    with serving(with_home(inside)) as url:
        other = f"the Dagster that answers there has another home, {inside}"
        assert owners.not_this_dagster(settings, url) == other
        assert owners.not_this_dagster(deployed, url) == ""
    assert owners.not_this_dagster(settings, "http://dagster.invalid:3000") == ""


def test_an_mlflow_is_ours_by_where_its_experiment_keeps_files(settings: Settings, tmp_path: Path) -> None:
    page = "/api/2.0/mlflow/experiments/get-by-name"
    ours = (settings.storage.data_dir / "mlflow" / "artifacts").as_uri()
    for location, says in (
        (ours, ""),
        (tmp_path.as_uri(), f"the MLflow that answers there keeps another folder's runs, {tmp_path}"),
    ):
        found = {"artifact_location": location, "experiment_id": "7"}
        with serving({page: {"experiment": found}}) as url:
            assert owners.not_this_mlflow(settings, url) == says
            port = int(url.rpartition(":")[2])
            assert Machine(settings, tmp_path, 3001, port).mlflow_runs().startswith(f"{url}/#/experiments/7?")
    with serving({"/health": "OK", page: "no experiment"}) as url:
        port = int(url.rpartition(":")[2])
        assert Machine(settings, tmp_path, 3001, port).mlflow_runs().startswith(f"{url}/#/experiments?")
        assert "does not have this folder's runs" in owners.not_this_mlflow(settings, url)
        shared = settings.model_copy(update={"mlflow": MlflowSettings(tracking_uri=url, ui_url=url)})
        assert owners.not_this_mlflow(shared, url) == ""
