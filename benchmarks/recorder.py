"""`make bench-recorder`: socket → Kafka, acknowledged → raw storage, on one core, beside its own parts.

The recorder is pinned to one core; the feed that plays to it and the real Kafka have the others. In the same
run: what reading the socket alone, parsing alone and producing alone reach, so that the whole has limits to
be compared with. A target that is missed is printed as BELOW.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import market
from benchmarks.performance_page import publish
from benchmarks.table import Line, machine

FRAMES, LIVE_FRAMES, LIVE_FRAMES_PER_S = 1_000_000, 600, 10.0
RECORDED_PER_S, RECORDER_MB, LIVE_SHARE = 20_000, 250, 0.03
#: Consuming and storing may cost as much again as reading, parsing and producing.
PARTS_SHARE = 0.5
_KAFKA = market.ROOT / "docker" / "kafka" / "kafka.sh"


def _others() -> list[str]:
    """Keep the first core for what is measured."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", ",".join(map(str, cores[1:] or cores))]


def measure(*arguments: str) -> dict[str, Any]:
    """Run one measurement on the first core.

    Raises:
        SystemExit: it failed.
    """
    command = [
        *("taskset", "-c", str(min(os.sched_getaffinity(0)))),
        *(sys.executable, "-m", "benchmarks.recorder_worker", *arguments),
    ]
    done = subprocess.run(command, cwd=market.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"measurement failed: {shlex.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def feed(path: Path, frames_per_s: float = 0) -> Iterator[str]:
    """The address of a feed that plays the file once."""
    command = [
        *_others(),
        sys.executable,
        "-m",
        "benchmarks.feed_source",
        "serve",
        str(path),
        str(frames_per_s),
    ]
    process = subprocess.Popen(command, cwd=market.ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@contextmanager
def kafka(folder: Path) -> Iterator[str]:
    """A real Kafka of its own, ended and deleted afterwards."""
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
    environment = os.environ | {"KAFKA_DIR": str(folder / "kafka"), "KAFKA_PORT": str(port)}
    # The broker outlives the script: its output must be no pipe that somebody waits on.
    subprocess.run([*_others(), _KAFKA, "start"], env=environment, check=True, stdout=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        subprocess.run([_KAFKA, "stop"], env=environment, check=True, stdout=subprocess.DEVNULL)


def lines(reports: dict[str, dict[str, Any]]) -> list[Line]:
    """The table."""
    whole, live = reports["record"], reports["live"]
    rate = whole["ticks"] / whole["seconds"]
    limits = ", ".join(
        f"{name} {_rate(reports[part]):,.0f}/s"
        for name, part in (("socket alone", "socket"), ("parse alone", "parse"), ("produce alone", "produce"))
    )
    return [
        Line("socket → Kafka acked → raw, one core", rate, RECORDED_PER_S, "ticks/s", _detail(whole)),
        Line(
            "the same over its parts one after another", rate / _in_a_row(reports), PARTS_SHARE, "×", limits
        ),
        Line("peak memory", whole["peak_mb"], RECORDER_MB, "MB", _memory(whole), at_most=True),
        Line(
            "share of a core at the live rate",
            live["cpu_s"] / live["seconds"],
            LIVE_SHARE,
            "cores",
            f"{live['ticks']} ticks of 2 products in {live['seconds']:.1f} s, {live['cpu_s']:.2f} s of CPU, "
            "start included",
            at_most=True,
        ),
    ]


def _rate(report: dict[str, Any]) -> float:
    return (report.get("ticks") or report["frames"]) / report["seconds"]


def _in_a_row(reports: dict[str, dict[str, Any]]) -> float:
    """Ticks a second if one core read, then parsed, then produced, and nothing were consumed or stored."""
    return 1 / sum(1 / _rate(reports[part]) for part in ("socket", "parse", "produce"))


def _detail(report: dict[str, Any]) -> str:
    return (
        f"{report['ticks']:,} ticks ({report['frames']:,} frames) in {report['seconds']:.1f} s, "
        f"{report['cpu_s']:.1f} s of CPU, {report['raw_mb']:.0f} MB of raw storage"
    )


def _memory(report: dict[str, Any]) -> str:
    return f"{report['peak_mb_quarter']:.0f} MB in the first quarter, {report['peak_mb']:.0f} MB in all"


def faults(reports: dict[str, dict[str, Any]], ticks: int) -> list[str]:
    """What is wrong, whatever its speed: a tick that was not read or not stored, a gap."""
    whole = reports["record"]
    found = [
        f"{whole[name]:,} {what} of {ticks:,}"
        for name, what in (("ticks", "ticks were read"), ("stored", "ticks were stored"))
        if whole[name] != ticks
    ]
    return [*found, *(["the recorder saw gaps"] if whole["gaps"] else [])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--frames", type=int, default=FRAMES, help="ticker frames played (default: %(default)s)"
    )
    parser.add_argument("--bootstrap", help="a running Kafka instead of one started for this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(
            f"machine: {machine()}\nmaking {options.frames:,} ticker frames of a synthetic market", flush=True
        )
        many, few = folder / "many", folder / "few"
        for path, count in ((many, options.frames), (few, LIVE_FRAMES)):
            make = ["-m", "benchmarks.feed_source", "make", str(path), str(count)]
            subprocess.run([sys.executable, *make], cwd=market.ROOT, check=True)
        reports: dict[str, dict[str, Any]] = {"parse": measure("parse", str(many))}
        with feed(many) as url:
            reports["socket"] = measure("socket", url)
        with kafka(folder) if options.bootstrap is None else _given(options.bootstrap) as servers:
            reports["produce"] = measure("produce", str(many), servers)
            with feed(many) as url:
                reports["record"] = measure("record", url, servers)
            with feed(few, LIVE_FRAMES_PER_S) as url:
                reports["live"] = measure("record", url, servers)
    table = lines(reports)
    for line in table:
        print(line.row())
    wrong = faults(reports, options.frames)
    if not wrong:
        publish("recorder", f"a synthetic market, {options.frames:,} ticker frames", table)
    for fault in wrong:
        print(f"WRONG RESULT  {fault}", file=sys.stderr)
    raise SystemExit(1 if wrong else 0)


@contextmanager
def _given(servers: str) -> Iterator[str]:
    yield servers


if __name__ == "__main__":
    main()
