"""`make bench-api`: a month of two products' features by the Python API, against pyarrow on the same files.

The files are a random walk a column in the true schema: what is measured is reading, not what the numbers
say. Each pair reads the files by pyarrow in its two ways (a dataset; a file after the other) and by the API;
the faster of pyarrow's counts. Arrow is compared with Arrow, pandas with pandas, and one product with what a
filter of pyarrow's gives.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.performance_page import publish
from benchmarks.table import Line, machine
from cryptovol_dagster.api.market import Market, open
from cryptovol_dagster.chains import timescale_specs
from cryptovol_dagster.core.features.catalogue import feature_names, features_version
from cryptovol_dagster.core.market.bars import frame_keys
from cryptovol_dagster.core.specs import MINUTES, SECONDS, TimescaleSpec
from cryptovol_dagster.core.times import DAY_NS, partition_window, partitions_between
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.market import to_table
from ingestor.settings import Settings

PRODUCTS = ("BTC-USD", "ETH-USD")
FIRST_DAY, DAYS, PAIRS = "2025-12-01", 31, 3
TARGET = 1.2
#: What one way of reading took: wall and CPU seconds.
Took = tuple[float, float]
Read = Callable[[], Any]


def write_month(lake: Lake, spec: TimescaleSpec, days: int) -> list[Path]:
    """Write features of so many days; returns the files, oldest first."""
    names, random = feature_names(spec), np.random.default_rng(7)
    bars = spec.partition_ns // spec.bar_ns
    walks = np.cumsum(random.normal(size=(len(names), bars * len(PRODUCTS))), axis=1) / 50
    start_ns = partition_window(FIRST_DAY)[0]
    files = []
    for number, key in enumerate(partitions_between(start_ns, start_ns + days * DAY_NS, spec.partition_ns)):
        starts = partition_window(key)[0] + spec.bar_ns * np.arange(bars)
        frame = frame_keys(PRODUCTS, starts)
        frame |= {name: np.sin(walk + number) for name, walk in zip(names, walks, strict=True)}
        frame |= {"valid": True, "reason": np.zeros(walks.shape[1], np.int8)}
        table = to_table(pd.DataFrame(frame))
        version, products = features_version(spec), spec.reference_set
        path = lake.write_table(spec.asset("features"), key, table, version=version, reference_set=products)
        files.append(path)
    return files


def timed(read: Read) -> tuple[Took, Any]:
    """Read once; what was read before is let go first, so that memory holds one table."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = read()
    return (time.perf_counter() - wall, time.process_time() - cpu), result


def compare(what: str, peers: dict[str, Read], ours: Read, pairs: int) -> list[Line]:
    """Take pairs, in both orders; returns the median ratio to the faster peer, of wall and of CPU time.

    The faster peer is that of the greater median: the faster of two in each pair would be the luckier one.
    """
    ratios = {clock: {name: list[float]() for name in peers} for clock in ("wall", "CPU")}
    shown, rows = [], set()
    for number in range(pairs):
        took: dict[str, Took] = {}
        runs = [*peers.items(), ("API", ours)]
        for name, read in runs if number % 2 == 0 else reversed(runs):
            took[name], result = timed(read)
            rows.add(len(result))
            del result
        for at, of_peers in enumerate(ratios.values()):
            for name, found in of_peers.items():
                found.append(took["API"][at] / took[name][at])
        shown.append(", ".join(f"{name} {wall:.2f}/{cpu:.2f} s" for name, (wall, cpu) in took.items()))
    if len(rows) != 1:
        raise SystemExit(f"{what}: the ways of reading differ in rows: {rows}")
    lines = []
    for clock, of_peers in ratios.items():
        found = max(of_peers.values(), key=median)
        detail = f"{pairs} pairs: {min(found):.2f} … {max(found):.2f}; {rows.copy().pop():,} rows"
        lines.append(Line(f"{what}, {clock}", median(found), TARGET, "×", detail, at_most=True))
    print(f"{what} (wall/CPU):", *(f"  {line}" for line in shown), sep="\n", flush=True)
    return lines


def lines_of(market: Market[pd.DataFrame], spec: TimescaleSpec, files: list[Path], pairs: int) -> list[Line]:
    """Compare a timescale's month in Arrow, in pandas, and of one product."""
    paths = [str(file) for file in files]

    def dataset() -> pa.Table:
        return ds.dataset(paths, format="parquet").to_table()

    def one_by_one() -> pa.Table:
        return pa.concat_tables([pq.ParquetFile(path).read() for path in paths])

    def one_product() -> pa.Table:
        return ds.dataset(paths, format="parquet").to_table(filter=ds.field("product") == PRODUCTS[0])

    def frame() -> pd.DataFrame:
        return one_by_one().unify_dictionaries().to_pandas()

    chain, arrow = spec.grid, market.arrow
    peers = {"dataset": dataset, "one by one": one_by_one}
    return [
        *compare(f"{chain}, Arrow", peers, lambda: arrow.features(chain=chain), pairs),
        *compare(f"{chain}, pandas", {"pyarrow": frame}, lambda: market.features(chain=chain), pairs),
        *compare(
            f"{chain}, one product, Arrow",
            {"dataset": one_product},
            lambda: arrow.features(PRODUCTS[0], chain=chain),
            pairs,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=DAYS, help="of features")
    parser.add_argument(
        "--pairs", type=int, default=PAIRS, help="of readings; of the minutes five times as many"
    )
    parser.add_argument("--timescale", choices=(SECONDS, MINUTES), action="append", help="default: both")
    asked = parser.parse_args()
    print(f"machine: {machine()}")
    specs = {spec.grid: spec for spec in timescale_specs(Settings()).values()}
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        market = open(folder)
        for grid in asked.timescale or (SECONDS, MINUTES):
            spec = specs[grid]
            files = write_month(market.lake, spec, asked.days)
            size = sum(file.stat().st_size for file in files)
            columns = len(feature_names(spec))
            print(
                f"\n{grid}: {asked.days} days, {len(files)} files, {size / 1e6:,.0f} MB, {columns} features"
            )
            # A month of minutes is half a second: a single pair says little.
            lines += lines_of(market, spec, files, asked.pairs * (5 if grid == MINUTES else 1))
    print()
    for line in lines:
        print(line.row())
    publish("api", f"a synthetic month of two products, {asked.days} days of features", lines)


if __name__ == "__main__":
    main()
