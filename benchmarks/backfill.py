"""`make bench-backfill`: a week of two products, raw ticks to evaluation; an hour; a retrain; a cold start.

Each measurement is a process of its own on a synthetic week (`benchmarks/week.py`). Time is wall time, as
promised; the CPU time beside it shows whether others had the cores too. A limit that is missed is printed as
BELOW.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import market
from benchmarks.performance_page import publish
from benchmarks.run import bare_environment
from benchmarks.table import Line, machine
from benchmarks.week import hours_from, write_week

FIRST_HOUR, WEEK_HOURS = "2026-04-01-00:00", 168
WEEK_MINUTES, WEEK_GB = 10.0, 3.0
HOUR_S, VALIDATE_CPU_S = 3.0, 8.0
RETRAIN_S, RETRAIN_GB = 90.0, 4.0
#: What is made of a range: everything, what the closed-hour sensor asks for, or what a retrain makes.
ALL, MARKET, TRAINING = "all", "market", "training"


def settings_in(folder: Path) -> Any:
    """The defaults, in a folder of their own."""
    from ingestor.settings.sections import Settings, StorageSettings

    storage = StorageSettings(
        data_dir=folder / "data", reports_dir=folder / "reports", artifacts_dir=folder / "artifacts"
    )
    return Settings(storage=storage)


def backfill(folder: Path, first: str, last: str, part: str) -> dict[str, Any]:
    """Run a range in this process; what it took is read from Dagster's own event log."""
    from cryptovol_dagster.chains import timescale_specs
    from cryptovol_dagster.verbs import runs

    settings = settings_in(folder)
    if part == TRAINING:
        selection = runs.training_selection(settings, timescale_specs(settings)["seconds"])
    else:
        selection = runs.chain_selection(settings, market_only=part == MARKET)
    assets: dict[str, float] = {}
    started = time.perf_counter()
    summary = runs.materialize_range(
        settings,
        first,
        last,
        selection,
        on_asset=assets.__setitem__,
    )
    wall_s = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall_s": wall_s,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_gb": used.ru_maxrss / 2**20,
        "assets_s": assets,
        "steps_s": _steps_s(settings, summary.run_id),
        "partitions": sum(summary.materialized.values()),
        "carried": len(summary.carried),
        "rows": _labelled_rows(summary.metadata, last),
        "errors": [check.description for check in summary.checks_failed if check.severity == "ERROR"],
    }


def _labelled_rows(metadata: dict[str, dict[str, dict[str, Any]]], key: str) -> int | None:
    """Rows that the newest problem was posed on; None where nothing was trained."""
    rows = metadata.get("seconds/splits", {}).get(key, {}).get("dagster/partition_row_count")
    return None if rows is None else int(rows)


def _steps_s(settings: Any, run_id: str) -> dict[str, float]:
    """Seconds of each step, checks included, by the event log."""
    from cryptovol_dagster.machine.instance import ensure_dagster_home, open_instance

    with open_instance(ensure_dagster_home(settings)) as instance:
        stats = instance.get_run_step_stats(run_id)
    return {one.step_key: one.end_time - one.start_time for one in stats if one.end_time and one.start_time}


def in_child(folder: Path, first: str, last: str, part: str = ALL) -> dict[str, Any]:
    """Run `backfill` in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    command = [
        *(sys.executable, "-m", "benchmarks.backfill"),
        *("--child", str(folder), "--first", first, "--last", last, "--part", part),
    ]
    done = subprocess.run(
        command,
        cwd=market.ROOT,
        env=bare_environment() | {"DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"measurement failed: {first} … {last}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def validate_cpu_s() -> float:
    """CPU seconds of `dagster definitions validate` in a fresh process, children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [Path(sys.executable).parent / "dagster", "definitions", "validate"]
    subprocess.run(command, cwd=market.ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def lines(
    week: dict[str, Any], hour: dict[str, Any], retrain: dict[str, Any], validate_s: float
) -> list[Line]:
    """The table."""
    slowest = ", ".join(f"{name} {took:.0f} s" for name, took in Counter(week["assets_s"]).most_common(5))
    to_labels_s = Counter(hour["steps_s"])
    drift_s = to_labels_s.pop("seconds__drift_scores")  # made of the same hour, but not on the way to labels
    steps = ", ".join(f"{name} {took:.2f} s" for name, took in to_labels_s.most_common(4))
    return [
        Line(
            "a week × 2 products, raw → evaluation",
            week["wall_s"] / 60,
            WEEK_MINUTES,
            "minutes",
            f"{week['partitions']} partitions, {week['carried']} hours carried, "
            f"{week['cpu_s']:.0f} s of CPU; {slowest}",
            at_most=True,
        ),
        Line("its peak memory", week["peak_gb"], WEEK_GB, "GiB", "ru_maxrss of the process", at_most=True),
        Line(
            "an hour, raw → labels, checks included",
            sum(to_labels_s.values()),
            HOUR_S,
            "s",
            f"{steps}; drift numbers beside it {drift_s:.2f} s",
            at_most=True,
        ),
        Line(
            f"a retrain: splits → champion and card, {retrain['rows']:,} rows",
            retrain["wall_s"],
            RETRAIN_S,
            "s",
            f"{retrain['cpu_s']:.0f} s of CPU; a process of its own, imports included",
            at_most=True,
        ),
        Line("its peak memory", retrain["peak_gb"], RETRAIN_GB, "GiB", "", at_most=True),
        Line("dagster definitions validate, cold", validate_s, VALIDATE_CPU_S, "s of CPU", "", at_most=True),
    ]


def main() -> None:
    """Measure, print the table; exit code 1 only where a check failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=int, default=WEEK_HOURS, help="length of the range")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", help=argparse.SUPPRESS)
    parser.add_argument("--last", help=argparse.SUPPRESS)
    parser.add_argument("--part", default=ALL, choices=(ALL, MARKET, TRAINING), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(backfill(given.child, given.first, given.last, given.part)))
        return
    print(json.dumps(machine()))
    hours = hours_from(FIRST_HOUR, given.hours)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        ticks = write_week(folder / "data" / "raw", hours)
        print(
            f"{ticks:,} ticks of {given.hours} hours written in {time.perf_counter() - started:.0f} s",
            flush=True,
        )
        week = in_child(folder, hours[0], hours[-1])
        # As the sensor asks for it: one hour, the others before it are there.
        hour = in_child(folder, hours[-1], hours[-1], MARKET)
        retrain = in_child(folder, hours[-1], hours[-1], TRAINING)
    table = lines(week, hour, retrain, validate_cpu_s())
    for line in table:
        print(line.row())
    if errors := week["errors"] + hour["errors"] + retrain["errors"]:
        raise SystemExit("\n".join(errors))
    publish("backfill", f"a synthetic market of {given.hours} hours, two products, {ticks:,} ticks", table)


if __name__ == "__main__":
    main()
