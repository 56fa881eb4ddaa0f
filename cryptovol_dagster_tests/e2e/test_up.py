"""`cryptovol up` for real: a simulated market is recorded, seen by `status`, and everything ends in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cryptovol_dagster_tests.e2e.processes import CRYPTOVOL, cryptovol


def _event(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()
    return json.loads(line)


def _environment(folder: Path) -> dict[str, str]:
    (folder / "config.yaml").write_text("coinbase: {products: [BTC-USD]}\n")
    env = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    (folder / "temporary").mkdir()
    return {**env, "CRYPTOVOL_CONFIG": str(folder / "config.yaml"), "TMPDIR": str(folder / "temporary")}


@pytest.mark.slow
def test_a_simulated_market_is_recorded_and_everything_ends_in_order(tmp_path: Path) -> None:
    env = _environment(tmp_path)
    options = ("--simulate", "--speed", "max", "--hours", "1", "--no-dagster", "--no-mlflow", "--json")
    command = [*CRYPTOVOL, "up", *options]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        started = _event(up)
        assert started["event"] == "started"
        assert started["data_dir"] == str(tmp_path / "data" / "simulated")
        assert list(started["logs"]) == ["recorder", "simulator"]
        told = [_event(up) for _ in range(3)]
        assert sorted(event["event"] for event in told) == ["notice", "notice", "ready"]
        assert {event["text"] for event in told if event["event"] == "notice"} == {
            "simulator has finished",
            "recorder has finished",
        }

        assert [path.name[:10] for path in (tmp_path / "temporary").iterdir()] == ["cryptovol-"]
        second = cryptovol("up", "--simulate", env=env)
        assert (second.returncode, second.stdout) == (1, "")
        assert f"is in use (pid {up.pid}, http://127.0.0.1:" in second.stderr

        seen = cryptovol("status", "--simulated", "--json", env=env)
        assert seen.returncode == 0, seen.stdout
        status = json.loads(seen.stdout)
        assert (status["raw"]["closed"], status["raw"]["recorder_runs"]) == (1, False)
        assert {one["name"]: one["runs"] for one in status["services"]} == {
            "recorder": False,
            "dagster": False,
            "mlflow": False,
            "kafka": False,
        }
        up.send_signal(signal.SIGTERM)
        output, errors = up.communicate(timeout=30)
    assert (up.returncode, errors) == (0, "")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [json.loads(line)["event"] for line in output.splitlines()] == ["stopping", "stopped"]

    required = cryptovol("status", "--simulated", "--require", "recorder", env=env)
    assert required.returncode == 1
    assert "recorder does not run" in required.stdout


@pytest.mark.slow
def test_a_recorder_that_cannot_begin_ends_everything_with_one_line(tmp_path: Path) -> None:
    env = {
        **_environment(tmp_path),
        "CRYPTOVOL__KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "CRYPTOVOL__KAFKA__CONNECT_TIMEOUT_S": "0.5",
    }
    failed = cryptovol("up", "--no-dagster", "--no-mlflow", env=env)
    assert failed.returncode == 1
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("Error:")]
    assert "recorder ended with exit code 1: Error: Kafka broker at 127.0.0.1:1 cannot be reached" in line
    assert f"(log: {tmp_path / 'data' / 'logs' / 'recorder.log'})" in line
