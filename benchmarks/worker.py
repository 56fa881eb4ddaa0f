"""One measurement in a process of its own, so that thread limits and peak memory are its own; prints JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import market, peers
from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.features.grid import FeatureGrid
from cryptovol_dagster.core.market.bars import build_bars
from cryptovol_dagster.core.market.ticks import TickColumns
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.replay import FeatureStream, replay

#: The peers may differ by this much: they sum floats and do not quantise imbalance for its deviation.
TOLERANCE = 1e-5


def _best(times: int, run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Least wall time of several runs, the CPU time of that run, and the last result."""
    best, result = (float("inf"), float("inf")), None
    for _ in range(times):
        result = None
        began, cpu_began = time.perf_counter(), time.process_time()
        result = run()
        best = min(best, (time.perf_counter() - began, time.process_time() - cpu_began))
    return *best, result


def day(with_pandas: bool) -> dict[str, Any]:
    """Bars and features of a day of ten products: the pipeline's, pandas', Polars'."""
    import polars as pl

    ticks = market.day_of_ticks()
    # The peers average over all products.
    spec = replace(market.seconds_spec(), reference_set=ticks.products)
    start_ns, end_ns = market.DAY_START_NS, market.DAY_START_NS + market.DAY_S * NS

    def ours() -> FeatureGrid:
        return compute_features(build_bars(ticks, start_ns=start_ns, end_ns=end_ns, spec=spec), spec)

    own_s, _, grid = _best(5, ours)
    report: dict[str, Any] = {
        "feature_hash": feature_hash(spec),
        "features": len(grid.names),
        "ticks": len(ticks),
        "rows": int(grid.valid.size),
        "valid_rows": int(grid.valid.sum()),
        "polars_threads": pl.thread_pool_size(),
        "own_s": own_s,
    }
    frames = peers.polars_input(ticks)
    report["polars_s"], _, result = _best(5, lambda: peers.by_polars(frames, start_ns, market.DAY_S, spec))
    report["polars_difference"] = _difference(grid, [frame.to_numpy() for frame in result])
    if with_pandas:
        own = peers.pandas_input(ticks)
        report["pandas_s"], _, result = _best(5, lambda: peers.by_pandas(own, start_ns, market.DAY_S, spec))
        report["pandas_difference"] = _difference(grid, [frame.to_numpy() for frame in result])
    return report


def _difference(grid: FeatureGrid, tables: list[Any]) -> float:
    """Greatest difference over all features; infinite where one side has a number and the other has none."""
    worst = 0.0
    for product, table in enumerate(tables):
        own, other = grid.values[:, product].T, np.asarray(table, dtype=np.float64)
        if (np.isnan(own) != np.isnan(other)).any():
            return float("inf")
        worst = max(worst, float(np.nanmax(np.abs(own - other))))
    return worst


def _rss_mb() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _stream(chunks: Iterator[TickColumns]) -> tuple[int, int]:
    """Ticks and valid rows of a stream of parsed chunks."""
    stream, valid = FeatureStream(market.seconds_spec()), 0
    for chunk in chunks:
        stream.add(chunk)
        valid += sum(int(grid.valid.sum()) for grid in stream.close_until(int(chunk.event_time_ns[-1])))
    valid += sum(int(grid.valid.sum()) for grid in stream.finish())
    return stream.counts.kept, valid


def parsed(recording: Path, times: int) -> dict[str, Any]:
    """Parsed ticks → features: the recording, and it repeated; with peak memory on the way."""
    ticks = market.recorded_ticks(recording)
    once_s, once_cpu_s, (n_once, valid_once) = _best(9, lambda: _stream(iter([ticks])))
    peaks: dict[int, float] = {}

    def chunks() -> Iterator[TickColumns]:
        for k, chunk in enumerate(market.repeated(ticks, times)):
            peaks.setdefault(k, _rss_mb())
            yield chunk

    many_s, many_cpu_s, (n_many, valid_many) = _best(3, lambda: _stream(chunks()))
    return {
        "once_ticks": n_once,
        "once_valid_rows": valid_once,
        "once_s": once_s,
        "once_cpu_s": once_cpu_s,
        "many_ticks": n_many,
        "many_valid_rows": valid_many,
        "many_s": many_s,
        "many_cpu_s": many_cpu_s,
        "peak_mb_quarter": peaks[times // 4],
        "peak_mb_end": peaks[times - 1],
    }


def from_file(recording: Path, runs: int) -> dict[str, Any]:
    """Gunzip, JSON and features, by the function behind `cryptovol replay`."""
    best, cpu_s, result = _best(runs, lambda: replay([recording], spec=market.seconds_spec()))
    return {
        "lines": result.lines,
        "ticks": result.kept,
        "valid_rows": result.valid_rows,
        "seconds": best,
        "cpu_s": cpu_s,
        "peak_mb": _rss_mb(),
    }


def main(arguments: list[str]) -> None:
    match arguments:
        case ["day", with_pandas]:
            report = day(with_pandas == "pandas")
        case ["parsed", recording, times]:
            report = parsed(Path(recording), int(times))
        case ["file", recording, runs]:
            report = from_file(Path(recording), int(runs))
        case _:
            raise SystemExit(f"no such measurement: {' '.join(arguments)}")
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
