"""`make bench-idle`: memory of Dagster's and MLflow's processes, minutes after `cryptovol up`, with no run.

An empty folder, and a feed that never comes: nobody listens on the recorder's port. The number is PSS, the
proportional set size: what several processes share is divided among them, so the sum is what the machine
would get back. The recorder, which has a limit of its own (`make bench-recorder`), is shown but not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import market
from benchmarks.performance_page import publish
from benchmarks.run import bare_environment
from benchmarks.table import Line, machine
from cryptovol_dagster.machine.reachable import free_port

LIMIT_GB = 1.05
COUNTED = ("Dagster", "MLflow")
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Held:
    """What a process holds.

    Attributes:
        service: whose process it is.
        command: its command, shortened.
        pss_mb: proportional set size, MB (10⁶ bytes).
        threads: how many it has.
    """

    service: str
    command: str
    pss_mb: float
    threads: int


@contextmanager
def idle_machine(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start `cryptovol up` on an empty folder; yields it when it says that all services are ready."""
    nobody = f"{_HOST}:{free_port(_HOST)}"
    settings = {
        "STORAGE__DATA_DIR": str(folder / "data"),
        "STORAGE__REPORTS_DIR": str(folder / "reports"),
        "STORAGE__ARTIFACTS_DIR": str(folder / "models"),
        "COINBASE__URL": f"ws://{nobody}",
        "HISTORY__URL": f"http://{nobody}",
    }
    environment = bare_environment() | {f"CRYPTOVOL__{name}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "cryptovol_dagster.cli", "up", "--json"]
    command += ["--dagster-port", "0", "--mlflow-port", "0"]
    process = subprocess.Popen(command, cwd=market.ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "ready":
                break
        else:
            raise SystemExit(f"`cryptovol up` ended with exit code {process.wait()} before it was ready")
        yield process
    finally:
        process.terminate()
        process.communicate()


def held_by(up: psutil.Process) -> list[Held]:
    """Measure each process of the services, by whose group it is in."""
    found = []
    for process in up.children(recursive=True):
        try:
            with process.oneshot():
                service = _service(psutil.Process(os.getpgid(process.pid)).cmdline())
                words = [word for word in process.cmdline()[1:] if not word.startswith("-")]
                held = process.memory_full_info().pss / 1e6
                found.append(Held(service, " ".join(words)[:60], held, process.num_threads()))
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return sorted(found, key=lambda held: (held.service, -held.pss_mb))


def _service(leader: list[str]) -> str:
    """Name the service by the command of its group's leader."""
    names = {"mlflow": "MLflow", "dagster": "Dagster", "dagster_webserver": "Dagster"}
    names |= {"dagster._daemon": "Dagster", "ingest": "recorder"}
    return next((names[word] for word in leader if word in names), "other")


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--after-s", type=float, default=300.0, help="wait so long once all is ready")
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="cryptovol-idle-") as folder, idle_machine(Path(folder)) as up:
        time.sleep(arguments.after_s)
        table = held_by(psutil.Process(up.pid))
    for held in table:
        print(f"{held.service:10}{held.pss_mb:8.1f} MB PSS {held.threads:4} threads   {held.command}")
    total_gb = sum(held.pss_mb for held in table if held.service in COUNTED) / 1e3
    detail = f"{' and '.join(COUNTED)}, {arguments.after_s:g} s after the start, no run"
    line = Line("idle memory", total_gb, LIMIT_GB, "GB PSS", detail, at_most=True)
    print(line.row())
    publish("idle", "an empty folder, no feed", [line])


if __name__ == "__main__":
    main()
