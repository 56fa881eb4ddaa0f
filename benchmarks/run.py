"""`make bench`: the promised ratios, measured in one run; exit code 1 only where results are wrong.

A target that is missed is printed as BELOW, with its ratio: machines differ, and a number is better than a
verdict. Rates are of wall time on one core; the CPU time beside it shows whether others had that core too.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import market
from benchmarks.performance_page import publish
from benchmarks.table import Line, machine
from benchmarks.worker import TOLERANCE

MILLION = 1_000_000
PARSED_PER_S, FILE_PER_S = 950_000, 150_000
#: Peak memory may grow by this much from the first quarter of a million ticks to the end and still be flat.
FLAT = 1.05
#: One core: libraries that start threads of their own are held to one.
ONE_THREAD = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def measure(*arguments: str, threads: int = 1) -> dict[str, Any]:
    """Run one measurement in a process of its own, on `threads` cores.

    Raises:
        SystemExit: it failed.
    """
    pinned = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if threads == 1 and _has_taskset() else []
    limits = ONE_THREAD if threads == 1 else {"POLARS_MAX_THREADS": str(threads)}
    command = [*pinned, sys.executable, "-m", "benchmarks.worker", *arguments]
    shown = [
        *(f"{name}={value}" for name, value in limits.items()),
        *pinned,
        "python",
        *command[len(pinned) + 1 :],
    ]
    shown[-len(arguments) :] = [Path(word).name if os.sep in word else word for word in arguments]
    print(f"$ {shlex.join(shown)}", flush=True)
    done = subprocess.run(
        command, cwd=market.ROOT, env=os.environ | limits, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"measurement failed: {shlex.join(shown)}\n{done.stderr}")
    return json.loads(done.stdout)


def bare_environment() -> dict[str, str]:
    """Return the environment without what would lead `cryptovol` to the user's own data or settings."""
    own = ("DAGSTER_HOME", "CRYPTOVOL_")
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(own)}


def _has_taskset() -> bool:
    return any((Path(folder) / "taskset").is_file() for folder in os.get_exec_path())


def day_lines(one: dict[str, Any], two: dict[str, Any]) -> list[Line]:
    """A day of ten products against pandas and Polars."""
    own = f"{one['own_s']:.2f} s"
    pandas = f"pandas {one['pandas_s']:.2f} s, ours {own}; results differ by ≤ {one['pandas_difference']:.0e}"
    polars = f"Polars {one['polars_s']:.2f} s, ours {own}; results differ by ≤ {one['polars_difference']:.0e}"
    both = (
        f"Polars {two['polars_s']:.2f} s on {two['polars_threads']} threads, ours {two['own_s']:.2f} s on one"
    )
    return [
        Line("bars + features vs pandas rolling, 1 core", one["pandas_s"] / one["own_s"], 2.0, "×", pandas),
        Line("bars + features vs Polars, 1 thread each", one["polars_s"] / one["own_s"], 1.0, "×", polars),
        Line("bars + features vs Polars, its 2 threads", two["polars_s"] / two["own_s"], 1.0, "×", both),
    ]


def replay_lines(parsed: dict[str, Any], once: dict[str, Any], many: dict[str, Any]) -> list[Line]:
    """Ticks a second, from parsed columns and from files, and memory."""
    growth = parsed["peak_mb_end"] / parsed["peak_mb_quarter"]
    peaks = f"{parsed['peak_mb_quarter']:.0f} MB after a quarter, {parsed['peak_mb_end']:.0f} MB at the end"
    return [
        _rate(
            "parsed ticks → features, once",
            parsed["once_ticks"],
            parsed["once_s"],
            parsed["once_cpu_s"],
            PARSED_PER_S,
        ),
        _rate(
            "parsed ticks → features, repeated",
            parsed["many_ticks"],
            parsed["many_s"],
            parsed["many_cpu_s"],
            PARSED_PER_S,
        ),
        Line("peak memory, end / first quarter", growth, FLAT, "×", peaks, at_most=True),
        _rate("gunzip + JSON → features, once", once["ticks"], once["seconds"], once["cpu_s"], FILE_PER_S),
        _rate(
            "gunzip + JSON → features, repeated", many["ticks"], many["seconds"], many["cpu_s"], FILE_PER_S
        ),
    ]


def _rate(what: str, ticks: int, seconds: float, cpu_s: float, target: int) -> Line:
    detail = f"{ticks:,} ticks in {seconds:.3f} s ({cpu_s:.3f} s of CPU)"
    return Line(what, ticks / seconds, target, "ticks/s", detail)


def faults(reports: dict[str, dict[str, Any]]) -> list[str]:
    """What is wrong with the results, whatever their speed."""
    found = []
    for name in ("day, 1 thread", "day, 2 threads"):
        for peer in ("pandas", "polars"):
            difference = reports[name].get(f"{peer}_difference", 0.0)
            if not difference <= TOLERANCE:
                found.append(f"{name}: {peer} differs by {difference}")
    parsed, once, many = (reports[name] for name in ("parsed", "file", "file, repeated"))
    for kind, file in (("once", once), ("many", many)):
        found += [
            f"{kind}: {parsed[f'{kind}_{count}']} {count} parsed, {file[count]} from the file"
            for count in ("ticks", "valid_rows")
            if parsed[f"{kind}_{count}"] != file[count]
        ]
    return found


def recording(folder: Path) -> tuple[Path, str]:
    """The real two hours where they are at hand, else the simulator's market of two hours."""
    if market.RECORDING.is_file():
        return market.RECORDING, f"real recording {market.RECORDING.name}"
    path = folder / "synthetic.ndjson.gz"
    command = [
        sys.executable,
        "-m",
        "cryptovol_dagster.cli",
        "simulate",
        "--hours",
        "2",
        "--write",
        str(path),
    ]
    subprocess.run(command, cwd=market.ROOT, check=True, stdout=subprocess.DEVNULL)
    return path, "SYNTHETIC market of the simulator (the real recordings are absent)"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, source = recording(Path(folder))
        print(f"machine: {machine()}\nticks:   {source}\n", flush=True)
        times = -(-MILLION // len(market.recorded_ticks(path)))
        million = Path(folder) / "million.ndjson.gz"
        market.write_repeated(path, times, million)
        reports = {
            "day, 1 thread": measure("day", "pandas"),
            "day, 2 threads": measure("day", "polars", threads=2),
            "parsed": measure("parsed", str(path), str(times)),
            "file": measure("file", str(path), "5"),
            "file, repeated": measure("file", str(million), "2"),
        }
    one = reports["day, 1 thread"]
    lines = [
        *day_lines(one, reports["day, 2 threads"]),
        *replay_lines(reports["parsed"], reports["file"], reports["file, repeated"]),
    ]
    print(
        f"\nfeature set {one['feature_hash']}: {one['features']} features, {one['rows']:,} rows a day "
        f"({one['valid_rows']:,} valid) from {one['ticks']:,} ticks\n"
    )
    for line in lines:
        print(line.row())
    wrong = faults(reports)
    if not wrong:
        publish("features", f"{source}; feature set {one['feature_hash']}, {one['features']} features", lines)
    for fault in wrong:
        print(f"WRONG RESULT  {fault}", file=sys.stderr)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
