"""The containers' health check program, as Docker runs it."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptovol_dagster_tests.deployment.files import DOCKER


def health(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DOCKER / "health.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


class Answering(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/well" else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_web_server_is_healthy_while_it_answers_well(url: str) -> None:
    assert health("http", f"{url}/well").returncode == 0
    ill = health("http", f"{url}/ill")
    assert (ill.returncode, len(ill.stderr.splitlines())) == (1, 1)
    assert "503" in ill.stderr


def test_a_server_that_is_not_there_is_unhealthy(unused_port: str) -> None:
    for arguments in (("http", f"http://127.0.0.1:{unused_port}"), ("grpc", unused_port)):
        gone = health(*arguments)
        assert (gone.returncode, len(gone.stderr.splitlines())) == (1, 1), gone.stderr


@pytest.fixture
def unused_port() -> str:
    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        return str(server.server_port)


def test_the_recorder_is_healthy_while_files_appear(tmp_path: Path) -> None:
    topic = tmp_path / "feed.events"
    assert "nothing stored yet" in health("stored", str(topic), "180").stderr
    hour = topic / "date=2026-01-01" / "hour=05"
    hour.mkdir(parents=True)
    assert health("stored", str(topic), "180").returncode == 0
    long_ago_s = time.time() - 1_000
    os.utime(hour, (long_ago_s, long_ago_s))
    old = health("stored", str(topic), "180")
    assert old.returncode == 1
    assert "nothing stored for 100" in old.stderr
    (hour / "a-published-file").touch()
    assert health("stored", str(topic), "180").returncode == 0


def test_the_featurizer_is_healthy_while_files_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "features.parquet"
    assert "nothing stored yet" in health("written", str(folder), "180").stderr
    folder.mkdir()
    file = folder / "2026-01-01T05_BTC-USD.parquet"
    file.touch()
    assert health("written", str(folder), "180").returncode == 0
    long_ago_s = time.time() - 1_000
    os.utime(file, (long_ago_s, long_ago_s))
    assert "nothing stored for 100" in health("written", str(folder), "180").stderr


def test_wrong_usage_is_told_apart() -> None:
    assert health().returncode == health("unknown").returncode == 2
