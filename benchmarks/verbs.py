"""`python -m benchmarks.verbs`: seconds, memory and latency of verbs that people wait for, run as typed.

The backtest and the import read real minutes (`--bars`). A score's latency is that of
`cryptovol infer --benchmark` on the demo's market, made here. Seconds are wall time, CPU beside it; memory
is the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.performance_page import publish
from benchmarks.run import bare_environment
from benchmarks.table import Line, machine

BACKTEST_S, BACKTEST_GB = 360.0, 3.0
IMPORT_S, IMPORT_GB = 30.0, 1.0
ONE_ROW_P99_MS = 0.1
DEMO_END = "2025-12-01T18:00Z"


@dataclass(frozen=True)
class Run:
    """What one verb took.

    Attributes:
        wall_s: seconds.
        cpu_s: seconds of CPU, of its children too.
        peak_gb: greatest memory of the process, in 1e9 bytes.
        output: its standard output.
    """

    wall_s: float
    cpu_s: float
    peak_gb: float
    output: str


def run(folder: Path, *arguments: str) -> Run:
    """Run a verb in `folder`.

    Raises:
        SystemExit: it failed.
    """
    began = time.perf_counter()
    with (folder / "stdout").open("w+") as stdout, (folder / "stderr").open("w+") as stderr:
        command = [sys.executable, "-m", "cryptovol_dagster.cli", *arguments]
        process = subprocess.Popen(command, cwd=folder, env=bare_environment(), stdout=stdout, stderr=stderr)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        took = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"cryptovol {' '.join(arguments)} failed:\n{(folder / 'stderr').read_text()}")
        output = (folder / "stdout").read_text()
    return Run(took, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9, output)


def backtest_lines(folder: Path, bars: Path) -> list[Line]:
    """The walk-forward backtest of one product and horizon, all models."""
    typed = ("backtest", "--product", "BTC-USD", "--horizon", "5", "--bars", str(bars), "--out", str(folder))
    done = run(folder, *typed)
    return [
        Line("backtest BTC-USD, 5 minutes", done.wall_s, BACKTEST_S, "s", f"{done.cpu_s:.0f} s of CPU", True),
        Line("its peak memory", done.peak_gb, BACKTEST_GB, "GB", "pictures included", True),
    ]


def import_lines(folder: Path, file: Path) -> list[Line]:
    """A file of minutes into the history."""
    done = run(folder, "import-bars", str(file), "--no-report")
    detail = f"{done.cpu_s:.1f} s of CPU, a Parquet file of {file.stat().st_size / 1e6:.0f} MB"
    return [
        Line("import-bars of minutes", done.wall_s, IMPORT_S, "s", detail, True),
        Line("its peak memory", done.peak_gb, IMPORT_GB, "GB", "", True),
    ]


def score_lines(folder: Path) -> list[Line]:
    """One row through the exported XGBoost, by onnxruntime."""
    run(folder, "demo", "--end", DEMO_END)
    typed = ("--config", "data/demo/config.yaml", "infer", "--benchmark", "--model", "xgboost", "--json")
    found = json.loads(run(folder, *typed).output)["benchmark"]
    (one,) = (each for each in found["calls"] if each["backend"] == "onnxruntime" and each["rows"] == 1)
    detail = f"p50 {one['p50_ms']:.3f} ms; every back end gave the same probabilities first"
    return [Line("one row by onnxruntime, p99", one["p99_ms"], ONE_ROW_P99_MS, "ms", detail, True)]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bars", type=Path, required=True, help="folder of minute candles (BTC-USD)")
    bars = parser.parse_args().bars.resolve()
    (file,) = (path for path in bars.glob("*.parquet") if "btc_usd" in path.name)
    print(machine(), flush=True)
    lines = []
    for measure in (
        lambda folder: import_lines(folder, file),
        score_lines,
        lambda folder: backtest_lines(folder, bars),
    ):
        with tempfile.TemporaryDirectory() as folder:
            for line in measure(Path(folder)):
                lines.append(line)
                print(line.row(), flush=True)
    publish("verbs", f"{file.name} and the demo's market", lines)


if __name__ == "__main__":
    main()
