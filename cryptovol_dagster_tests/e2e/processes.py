"""Starting the real commands, Dagster's and our own, and leaving no process behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cryptovol_dagster.cli import main
from cryptovol_dagster.machine.instance import DAGSTER_YAML
from ingestor.settings import Settings

#: `cryptovol`, whatever the PATH says.
CRYPTOVOL = (sys.executable, "-m", "cryptovol_dagster.cli")


def environment(settings: Settings, folder: Path) -> dict[str, str]:
    """Write the configuration and a Dagster home into `folder`; give the environment that names both."""
    config, home = folder / "config.yaml", folder / "dagster_home"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text(DAGSTER_YAML)
    return {
        **os.environ,
        "CRYPTOVOL_CONFIG": str(config),
        "DAGSTER_HOME": str(home),
        "DO_NOT_TRACK": "1",
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }


def dagster(*arguments: str, env: dict[str, str], timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run Dagster's command line to its end."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("dagster")), *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def cryptovol(
    *arguments: str | Path, env: dict[str, str], timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a verb of `cryptovol` to its end."""
    return subprocess.run(
        [*CRYPTOVOL, *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def cryptovol_here(*arguments: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end in this process: what it prints and its exit code, without a second of imports.

    Beside it at least one test runs the verb as a process of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - env.keys():
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


@dataclass(frozen=True)
class Market:
    """A running `cryptovol simulate`.

    Attributes:
        process: with the rest of its events on stdout, as JSON lines.
        url: where it listens.
    """

    process: subprocess.Popen[str]
    url: str

    def ended(self, timeout_s: float = 20) -> dict[str, Any]:
        """Wait for its end; give its last event."""
        output, _ = self.process.communicate(timeout=timeout_s)
        assert self.process.returncode == 0
        return json.loads(output.splitlines()[-1])


@contextmanager
def simulated(*arguments: str | Path, env: dict[str, str]) -> Iterator[Market]:
    """Serve a market; it never outlives the block."""
    command = [*CRYPTOVOL, "simulate", "--json", *map(str, arguments)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Market(process, json.loads(process.stdout.readline())["url"])
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=20)


@contextmanager
def running(
    program: str, *arguments: str, env: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a program running; at the end interrupt it and whatever it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(program)), *arguments],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                if _ended(process, signum):
                    break


def _ended(process: subprocess.Popen[bytes], signum: int) -> bool:
    try:
        os.killpg(process.pid, signum)
    except ProcessLookupError:
        return True
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        return False
    return signum == signal.SIGKILL  # the leader has ended; its children are asked once more


def wait_until(
    is_done: Callable[[], bool], what: str, timeout_s: float, process: subprocess.Popen[bytes], log: Path
) -> None:
    """Wait for a condition while a process lives; tell the end of its log when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not is_done():
        state = process.poll()
        assert state is None, f"ended with {state} while waiting for {what}:\n{_tail(log)}"
        assert time.monotonic() < deadline, f"{what} did not happen in {timeout_s:g} s:\n{_tail(log)}"
        time.sleep(0.5)


def free_port() -> int:
    """Give a port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
