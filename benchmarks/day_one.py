"""`python -m benchmarks.day_one`: minutes from `cryptovol up` on an empty folder to the first champions.

The exchange is the tests' candle server, asked at the pace of the settings (5 requests a second). It serves
minutes of a market whose volatility clusters, or those of `--bars` (their last days, moved to the present).
There is no feed. Recorder, Dagster and MLflow run as a user's do. CPU is that of all these processes.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import psutil

from benchmarks.performance_page import publish
from benchmarks.run import bare_environment
from benchmarks.table import Line, machine
from cryptovol_dagster.chains import minutes_specs
from cryptovol_dagster.core.market.candle_checks import MINUTE_NS, check_candles
from cryptovol_dagster.core.times import DAY_NS
from cryptovol_dagster.history.imports import read_table
from cryptovol_dagster.history.progress import DONE, read_progress
from cryptovol_dagster.history.store import History
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster_tests.candle_server import serving_candles
from ingestor.settings import Settings

LIMIT_MIN = 15.0
GIVEN_UP_AFTER_S = 3_600.0
PRODUCTS = ("BTC-USD", "ETH-USD")
_CONFIG = """\
coinbase: {{url: "ws://127.0.0.1:1", products: [BTC-USD, ETH-USD]}}
history: {{url: "{url}", first_import_days: {days}}}
"""


def clustered_candles(days: int, now_ns: int, seed: int) -> pd.DataFrame:
    """Make minutes up to now whose log volatility remembers half an hour."""
    random = np.random.default_rng(seed)
    first_ns = (now_ns // DAY_NS - days) * DAY_NS
    n = (now_ns - first_ns) // MINUTE_NS
    shocks = random.normal(0, 0.25, n)
    level = pd.Series(shocks).ewm(alpha=0.03, adjust=False).mean().to_numpy() / 0.03
    scale = 4e-4 * np.exp(level - level.var() / 2)
    closes = 1_000 * seed * np.exp(np.cumsum(scale * random.standard_normal(n)))
    opens = np.append(closes[:1], closes[:-1])
    reach = 0.3 * scale * random.uniform(0.2, 1, (2, n))
    return pd.DataFrame(
        {
            "start_ns": first_ns + MINUTE_NS * np.arange(n, dtype=np.int64),
            "open": opens,
            "high": np.maximum(opens, closes) * (1 + reach[0]),
            "low": np.minimum(opens, closes) * (1 - reach[1]),
            "close": closes,
            "volume": random.uniform(0.1, 5, n),
        }
    )


def real_candles(folder: Path, product: str, days: int, now_ns: int) -> pd.DataFrame:
    """Read the last days of a product before 2025, moved by whole days so that they end now."""
    (file,) = (path for path in folder.glob("*.parquet") if product.lower().replace("-", "_") in path.name)
    candles = check_candles(read_table(file), str(file), now_ns=now_ns).candles.drop(columns="product")
    last_ns = pd.Timestamp("2025-01-01", tz="UTC").value
    moved = candles.assign(start_ns=candles["start_ns"] + (now_ns // DAY_NS + 1) * DAY_NS - last_ns)
    first_ns = (now_ns // DAY_NS - days) * DAY_NS
    return moved.loc[(moved["start_ns"] >= first_ns) & (moved["start_ns"] < now_ns - MINUTE_NS)]


@contextmanager
def running_up(folder: Path) -> Iterator[psutil.Process]:
    """Run `cryptovol up` on a folder; at the end stop it in order."""
    command = [sys.executable, "-m", "cryptovol_dagster.cli", "--config", str(folder / "config.yaml"), "up"]
    with (folder / "up.log").open("wb") as log:
        up = subprocess.Popen(
            [*command, "--dagster-port", "0", "--mlflow-port", "0"],
            env=bare_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield psutil.Process(up.pid)
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(180)


def cpu_s(process: psutil.Process) -> float:
    """Sum the CPU seconds of a process and all below it, ended ones included."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            total += sum(one.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def settings_of(folder: Path) -> Settings:
    """Give the settings that place everything below a folder."""
    return Settings.model_validate({"storage": {"data_dir": folder / "data"}})


def wait_for_champions(folder: Path, up: psutil.Process) -> dict[str, tuple[float, float]]:
    """Return seconds since the start, and CPU seconds until then, of each step."""
    settings = settings_of(folder)
    history, lake = History(settings.storage.history_dir), Lake(settings.storage.lake_dir)
    names = [spec.name for spec in minutes_specs(settings.timescales.minutes)]

    def imported() -> bool:
        progress = read_progress(history.root)
        return progress is not None and progress.state == DONE

    def decided(name: str) -> bool:
        found = lake.partitions(f"{name}/champion", "json")
        decision = json.loads(lake.read_bytes(f"{name}/champion", found[-1], "json")) if found else {}
        return (decision.get("champion") or {}).get("registry_version") is not None

    awaited = {
        "minutes imported": imported,
        "days computed to labels": lambda: all(lake.partitions(f"{name}/labels") for name in names),
        **{f"champion of {name}": lambda name=name: decided(name) for name in names},
    }
    began, found = time.monotonic(), {}
    while len(found) < len(awaited):
        for what, is_done in awaited.items():
            if what not in found and is_done():
                found[what] = (time.monotonic() - began, cpu_s(up))
                print(f"{found[what][0] / 60:6.2f} min {found[what][1]:6.0f} s of CPU  {what}", flush=True)
        if time.monotonic() - began > GIVEN_UP_AFTER_S or not up.is_running():
            raise SystemExit(f"no champions: see {folder / 'up.log'} and {folder / 'data/logs'}")
        time.sleep(1)
    return found


def main() -> None:
    """Measure once and print minutes and their ratio to the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=120, help="history.first_import_days (default: 120)")
    parser.add_argument("--bars", type=Path, help="folder of real minute candles (default: made up)")
    parser.add_argument("--folder", type=Path, help="keep everything here (default: a temporary folder)")
    asked = parser.parse_args()
    now_ns = time.time_ns()
    candles = {
        product: real_candles(asked.bars, product, asked.days + 1, now_ns)
        if asked.bars
        else clustered_candles(asked.days + 1, now_ns, seed)
        for seed, product in enumerate(PRODUCTS, 1)
    }
    print(machine())
    with tempfile.TemporaryDirectory() as temporary, serving_candles(candles) as server:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(_CONFIG.format(url=server.url, days=asked.days))
        with running_up(folder) as up:
            found = wait_for_champions(folder, up)
        client = mlflow.MlflowClient(settings_of(folder).mlflow_tracking_uri)
        for model in client.search_registered_models():
            print(f"registered: {model.name}, {model.aliases}")
    last_s, used_s = max(found.values())
    parts = ", ".join(f"{what} {at_s / 60:.1f} min" for what, (at_s, _) in found.items())
    what = "`cryptovol up` → champions of both horizons"
    line = Line(what, last_s / 60, LIMIT_MIN, "min", f"{used_s:.0f} s of CPU; {parts}", at_most=True)
    print(line.row())
    source = f"minutes of {asked.bars.name}" if asked.bars else "synthetic minutes"
    publish("day_one", f"{asked.days} days of {len(PRODUCTS)} products, {source}", [line])


if __name__ == "__main__":
    main()
