"""`python -m benchmarks.reports`: what a drift report and an hour's drift numbers cost, against their limits.

A hundred columns of a random walk a product, on the scale of the seconds timescale: the limits are of the
work, not of what the numbers say.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmarks.performance_page import publish
from benchmarks.table import Line, machine
from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.core.drift.limits import DriftLimits, limits_in_force
from cryptovol_dagster.core.features.catalogue import feature_hash, feature_names
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.market import to_table
from cryptovol_dagster.monitoring import drift
from cryptovol_dagster.monitoring.drift import DriftWindow
from cryptovol_dagster.monitoring.evidently import DRIFT, Criteria, Sampling, Side, comparison_report
from ingestor.settings import Settings

ROWS, COLUMNS, REFERENCE_HOURS, CALIBRATION_HOURS = 20_000, 100, 24, 720
REPORT_LIMIT_S, SCORES_LIMIT_S = 60.0, 0.3
NEWEST = "2026-04-05-03:00"
PRODUCTS = ("BTC-USD", "ETH-USD")
BARS = 3_600
LIMITS = DriftLimits(distance=1.2, share=0.3)


def report_line() -> Line:
    """The Evidently drift report, import included: what the drift job does in a fresh process."""
    random = np.random.default_rng(7)
    names = [f"feature_{number}" for number in range(COLUMNS)]
    reference, current = (
        pd.DataFrame(np.cumsum(random.normal(size=(rows, COLUMNS)), axis=0) / 50, columns=names)
        for rows in (REFERENCE_HOURS * BARS, ROWS)
    )
    schema = pa.schema([(name, pa.float64()) for name in names])
    started, cpu = time.perf_counter(), time.process_time()
    report = comparison_report(
        DRIFT,
        NEWEST,
        Side("reference", "a day", reference),
        Side("recent", "hours", current),
        schema,
        Criteria(limits_in_force([], names, LIMITS)),
        Sampling(ROWS, seed=7),
    )
    took, of_cpu = time.perf_counter() - started, time.process_time() - cpu
    if report.summary["columns"] != COLUMNS or set(report.rows.values()) != {ROWS}:
        raise SystemExit(f"the report is not of {ROWS} rows × {COLUMNS} columns: {report.summary}")
    detail = f"{of_cpu:.1f} s of CPU, import included; HTML {len(report.html) / 1e6:.1f} MB"
    return Line(f"drift report, {ROWS:,} rows × {COLUMNS} columns", took, REPORT_LIMIT_S, "s", detail, True)


def scores_line(spec: TimescaleSpec) -> Line:
    """The drift numbers of an hour with a day of reference and a month of past ones, as usual."""
    names, random = feature_names(spec), np.random.default_rng(7)
    window = DriftWindow(REFERENCE_HOURS, CALIBRATION_HOURS, LIMITS)
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(Path(folder))
        for key in [*drift.partitions_before(NEWEST, REFERENCE_HOURS), NEWEST]:
            values = np.cumsum(random.normal(size=(BARS * len(PRODUCTS), len(names))), axis=0) / 50
            frame = pd.DataFrame(values, columns=list(names))
            frame["product"] = np.repeat(PRODUCTS, BARS)
            frame["valid"] = True
            lake.write_table(spec.asset("features"), key, to_table(frame), version=feature_hash(spec))
            if key != NEWEST:
                scores = drift.score_hour(lake, spec, key, replace(window, reference_hours=1))
        past = scores.to_dict()
        past["reference"]["wanted"] = REFERENCE_HOURS
        content = json.dumps(past, indent=2).encode()
        for key in drift.partitions_before(NEWEST, CALIBRATION_HOURS):
            lake.write_bytes(drift.scores_asset(spec), key, content, "json")
        started, cpu = time.perf_counter(), time.process_time()
        scores = drift.score_hour(lake, spec, NEWEST, window)
        took, of_cpu = time.perf_counter() - started, time.process_time() - cpu
    if scores.status != drift.SCORED or len(scores.reference_hours) != REFERENCE_HOURS:
        raise SystemExit(f"the hour was not scored: {scores.status} {scores.reason}")
    if scores.limits.pairs != CALIBRATION_HOURS:
        raise SystemExit(f"the hour was not calibrated on a month: {scores.limits.basis}")
    detail = (
        f"{of_cpu:.2f} s of CPU; {len(names)} features × {len(PRODUCTS)} products, a day before, limits "
        f"of {CALIBRATION_HOURS} past pairs"
    )
    return Line("drift numbers of an hour", took, SCORES_LIMIT_S, "s", detail, True)


def main() -> None:
    print(f"machine: {machine()}\n", flush=True)
    seconds = Settings().timescales.seconds
    spec = timescale_spec(seconds, "seconds")
    lines = []
    for measure in (lambda: scores_line(spec), report_line):
        lines.append(measure())
        print(lines[-1].row(), flush=True)
    publish("reports", "random numbers in the shape of features", lines)


if __name__ == "__main__":
    main()
