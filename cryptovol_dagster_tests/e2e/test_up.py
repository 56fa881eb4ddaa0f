"""`cryptovol up` for real: a simulated market is recorded, seen by `status`, and everything ends in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import DAY_NS
from cryptovol_dagster.history.last_days import PAGES_AT_ONCE
from cryptovol_dagster_tests.candle_server import made_candles, serving_candles
from cryptovol_dagster_tests.e2e.processes import CRYPTOVOL, cryptovol, cryptovol_here


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
        assert list(started["logs"]) == ["scorer", "featurizer", "recorder", "simulator"]
        told = [_event(up) for _ in range(5)]
        assert sorted(event["event"] for event in told) == [*["notice"] * 4, "ready"]
        texts = [event["text"] for event in told if event["event"] == "notice"]
        assert sorted(texts) == sorted(f"{name} has finished" for name in started["logs"])
        # Whoever reads the embedded broker has ended, and stored everything, before it.
        assert [text.split()[0] for text in texts if "simulator" not in text] == [
            "scorer",
            "featurizer",
            "recorder",
        ]

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
            "featurizer": False,
            "scorer": False,
        }
        # Every second to the market's end has a reason why it has no probability.
        assert status["live"]["newest_bar_end_ns"] > status["raw"]["newest_tick_ns"] - 30 * NS
        assert (status["live"]["with_probability"], status["live"]["reason"]) == (0.0, "no_model")
        assert (
            cryptovol(
                "audit", env=env | {"CRYPTOVOL_CONFIG": started["data_dir"] + "/config.yaml"}
            ).returncode
            == 0
        )
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
        "CRYPTOVOL__HISTORY__FIRST_IMPORT_DAYS": "0",
    }
    failed = cryptovol("up", "--no-dagster", "--no-mlflow", env=env)
    assert failed.returncode == 1
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("Error:")]
    assert "recorder ended with exit code 1: Error: Kafka broker at 127.0.0.1:1 cannot be reached" in line
    assert f"(log: {tmp_path / 'data' / 'logs' / 'recorder.log'})" in line


@contextmanager
def _up(env: dict[str, str], log: Path) -> Iterator[None]:
    """Run recorder and import alone; at the end stop them in order."""
    command = [*CRYPTOVOL, "up", "--no-live", "--no-dagster", "--no-mlflow"]
    with log.open("w") as output, subprocess.Popen(command, env=env, stdout=output, stderr=output) as up:
        yield
        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 0, log.read_text()


def _minutes(env: dict[str, str]) -> str | None:
    return json.loads(cryptovol_here("status", "--json", env=env).stdout)["minutes"]


def _wait_until_status_says(env: dict[str, str], says: str) -> None:
    deadline = time.monotonic() + 120
    while says not in ((said := _minutes(env)) or ""):
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


@pytest.mark.slow
def test_the_last_days_are_imported_beside_the_recorder_and_the_next_start_goes_on(tmp_path: Path) -> None:
    now_ns = time.time_ns()
    first_ns = (now_ns // DAY_NS - 3) * DAY_NS
    candles = made_candles(first_ns, (now_ns - first_ns) // (60 * 10**9))
    with serving_candles({"BTC-USD": candles}) as server:
        env = {
            **_environment(tmp_path),
            "CRYPTOVOL__COINBASE__URL": "ws://127.0.0.1:1",
            "CRYPTOVOL__HISTORY__URL": server.url,
            "CRYPTOVOL__HISTORY__REQUESTS_PER_S": "1000",
            "CRYPTOVOL__HISTORY__FIRST_IMPORT_DAYS": "3",
        }
        server.hold_after = PAGES_AT_ONCE
        log = tmp_path / "up.log"
        with _up(env, log):
            _wait_until_status_says(env, "importing minutes: BTC-USD 2 of 3 days; ")
        said = log.read_text()
        assert "minutes  none yet: the last 3 days of BTC-USD are imported in the background" in said
        assert "stopping: recorder, then minutes" in said
        assert _minutes(env) == "import of minutes stopped: BTC-USD 2 of 3 days; `cryptovol up` continues it"

        server.hold_after = None
        server.answering.set()
        answered = set(server.asked[:PAGES_AT_ONCE])
        with _up(env, log):
            _wait_until_status_says(env, "imported minutes: BTC-USD 3 of 3 days, as of ")
        assert answered.isdisjoint(server.asked[PAGES_AT_ONCE:])
        assert "minutes  missing minutes of the last 3 days are imported in the background" in log.read_text()
