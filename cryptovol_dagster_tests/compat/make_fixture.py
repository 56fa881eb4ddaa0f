"""Writes what `test_made_before.py` opens: stores of commit e96414f, and what that build read in them.

    git worktree add ../before e96414f && make -C ../before setup
    ../before/.venv/bin/python cryptovol_dagster_tests/compat/make_fixture.py ../before

Run it with the interpreter of that checkout, never with a later one: the point of the archive is that nothing
of a later build has touched it. It is written once and committed; there is no need to write it again.

The way is the real one, verb by verb: a synthetic market → socket → recorder → raw storage (Parquet, and a
second session in NDJSON) → `backfill` → `evaluate` → `rollback`; minute candles from a file → `import-bars` →
`backfill` → `evaluate`. What differs from a market is its size: few ticks, long bars, small trees.

Everything is written below `ROOT`, a path that belongs to no machine: MLflow writes the absolute URI of each
artifact into its database, Dagster the path of each file into an asset's metadata. The test moves MLflow's
URIs to where it unpacks, as whoever moves a data folder must: a relative one would be read from wherever the
process happens to stand. Dagster's paths are only shown to people and stay as they are. The verbs are started
by ``python -c`` and as user `USER`, because MLflow tags each run with the program's path and the user's name.

Pictures in the event log stay. What is left out is what a data folder can be without: copies of these
pictures as PNG files (the next run draws them again), locks.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, closing, contextmanager
from pathlib import Path
from typing import Any

import facts
import pyarrow as pa

HERE = Path(__file__).resolve().parent
COMMIT = "e96414f"
ROOT, USER = Path("/tmp/cryptovol-before"), "cryptovol"
ARCHIVE, EXPECTED = f"before_{COMMIT}.tar.xz", "expected.json"
MOST_BYTES = 2_000_000

START = "2026-04-04T03:00:00Z"
#: Hours that are materialized, and the one after them, which is recorded only: the test goes on with it.
HOURS = tuple(f"2026-04-04-{hour:02}:00" for hour in range(3, 6))
NEXT_HOUR = "2026-04-04-06:00"
#: The recorder is started again after this many hours; the tail of an hour is needed to close it.
FIRST_SESSION_H, ALL_H = 3.05, 4.05
#: Of the first session: frames lost, one twice, one spoilt, a connection cut.
FAULTS = "gap@5000s:3; repeat@7000s; malformed@8000s:truncated; disconnect@9000s:1006"
#: Seconds between two frames kept of a channel and product.
KEEP_EVERY_S = {"ticker": 12.0, "market_trades": 30.0, "heartbeats": 5.0}

DAYS = ("2026-04-01", "2026-04-02", "2026-04-03")
#: Candles of a day: its first hours. What comes after is a hole, which costs next to nothing to store.
CANDLE_HOURS = 3

CONFIG = """\
# Made by the build of commit e96414f; only what makes the market small differs from the defaults.
coinbase:
  products: [BTC-USD, ETH-USD]
kafka:
  bootstrap_servers: embedded
storage:
  data_dir: data
  reports_dir: reports
  artifacts_dir: models/artifacts
timescales:
  seconds:
    bar_interval_s: 30
    windows_bars: [5, 15, 60]
    ewma_half_lives_bars: [5]
    horizon_bars: 5
    stale_after_s: 60.0
    label_max_age_s: 60.0
    retrain_every_hours: 3
    splits:
      train_span_s: 10800
      test_span_s: 3600
  minutes:
    windows_bars: [5, 15]
    ewma_half_lives_bars: [5]
    horizons:
      - {bars: 5, target: garman_klass}
    retrain_every_days: 2
    splits:
      train_span_s: 172800
      test_span_s: 86400
    models:
      enabled: [persistence, ewma, logreg]
      bootstrap_resamples: 20
models:
  xgboost_trees: 20
  xgboost_min_child_weight: 5.0
  bootstrap_resamples: 20
monitoring:
  drift_reference_hours: 3
dagster:
  partitions_start: "2026-04-04-03:00"
  minutes_start: 2026-04-01
"""
#: Of the next hour: tables that the archive holds as the earlier build wrote them.
NEXT_TABLES = ("seconds/bars", "seconds/features", "seconds/labels")
SECONDS_MODEL = "cryptovol-seconds-h5"
#: Rows that each registered version scores.
ROWS_SCORED = 24
DOTENV = "CRYPTOVOL__MONITORING__REPORT_MAX_ROWS=500\n"


def checkout() -> Path:
    """Read the command line: where the build before is checked out."""
    parser = argparse.ArgumentParser(description="Make the stores of the build before; see this file's head.")
    parser.add_argument("checkout", type=Path, help=f"checkout of {COMMIT} whose .venv runs this script")
    return parser.parse_args().checkout.resolve()


def run(*verb: str) -> str:
    """Run a verb of the build before to its end and give what it printed."""
    done = subprocess.run(command(verb), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"cryptovol {' '.join(verb)}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def command(verb: Sequence[str]) -> list[str]:
    """Return the command of a verb."""
    return [sys.executable, "-c", "from cryptovol_dagster.cli import main; main()", *verb]


def environment() -> dict[str, str]:
    """Return an environment that holds nothing of this machine but where programs are."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
    return {
        **kept,
        "HOME": str(ROOT / "home"),
        "USER": USER,
        "LOGNAME": USER,
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }


def simulate() -> tuple[Path, Path]:
    """Write two recordings of one market, one for each session of the recorder."""
    market = ROOT / "market.ndjson"
    run("simulate", "--start", START, "--hours", str(ALL_H), "--seed", "7", "--write", str(market))
    sessions = ROOT / "first.ndjson.gz", ROOT / "second.ndjson.gz"
    thin_out(market, sessions)
    market.unlink()
    return sessions


def thin_out(market: Path, sessions: Sequence[Path]) -> None:
    """Keep a frame of each product and channel every few seconds, renumbered, in two connections.

    The second begins as every connection does, with acknowledgements of what is subscribed to.
    """
    acknowledged, kept_at = [], {}
    started, session, number = None, 0, 0
    files = [gzip.GzipFile(path, "wb", mtime=0) for path in sessions]
    for line in market.open():
        entry = json.loads(line)
        frame = entry["frame"]
        at_s = seconds(entry["received_at"])
        started = at_s if started is None else started
        if not session and at_s - started >= FIRST_SESSION_H * 3_600:
            session, number, kept_at = 1, 0, {}
            for one in acknowledged:
                number = write(files[1], entry["received_at"], one, number)
        if frame["channel"] == "subscriptions":
            acknowledged.append(frame | {"timestamp": frame["timestamp"]})
        else:
            what = frame["channel"], product_of(frame)
            if at_s - kept_at.get(what, 0.0) < KEEP_EVERY_S[frame["channel"]]:
                continue
            kept_at[what] = at_s
        number = write(files[session], entry["received_at"], frame, number)
    for file in files:
        file.close()


def write(file: gzip.GzipFile, received_at: str, frame: dict[str, Any], number: int) -> int:
    """Write a frame under a number and give the next one."""
    moment = {"timestamp": received_at} if frame["channel"] == "subscriptions" else {}
    line = {"received_at": received_at, "frame": frame | moment | {"sequence_num": number}}
    file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
    return number + 1


def seconds(moment: str) -> float:
    """Return a moment of the exchange as seconds since the epoch."""
    import pandas as pd

    return pd.Timestamp(moment).timestamp()


def product_of(frame: dict[str, Any]) -> str:
    """Return the product of a frame; heartbeats have none."""
    found = re.search(r'"product_id": "([^"]+)"', json.dumps(frame["events"]))
    return found[1] if found else ""


def record(recording: Path, raw_format: str, faults: str) -> None:
    """Play a recording to the recorder, each in a process of its own."""
    play = ["simulate", "--json", "--once", "--speed", "max", "--recording", str(recording)]
    with running([*play, "--faults", faults]) as simulator:
        url = json.loads(simulator.stdout.readline())["url"]
        ingest = command(["ingest", "--json", "--until-closed", "--url", url])
        chosen = environment() | {"CRYPTOVOL__STORAGE__RAW_FORMAT": raw_format}
        subprocess.run(ingest, cwd=ROOT, env=chosen, check=True)


@contextmanager
def running(verb: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A verb as a child process, its stdout read here."""
    child = subprocess.Popen(command(verb), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.terminate()
        child.wait()


def write_candles() -> None:
    """Write a CSV file of one product's candles whose volatility remembers half an hour."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(7)
    frames, last = [], 60_000.0
    for day in DAYS:
        n = CANDLE_HOURS * 60
        level, noise = np.zeros(n), random.normal(0, 0.25, n)
        for k in range(1, n):
            level[k] = 0.97 * level[k - 1] + noise[k]
        close = last * np.exp(np.cumsum(4e-4 * np.exp(level) * random.standard_normal(n)))
        opened = np.append(last, close[:-1])
        spread = 1e-4 * np.exp(level) * random.uniform(0.2, 1, (2, n))
        start = pd.Timestamp(day, tz="UTC").timestamp()
        frames.append(
            pd.DataFrame(
                {
                    "time": (start + 60 * np.arange(n)).astype(int),
                    "open": opened.round(2),
                    "high": (np.maximum(opened, close) * (1 + spread[0])).round(2),
                    "low": (np.minimum(opened, close) * (1 - spread[1])).round(2),
                    "close": close.round(2),
                    "volume": random.uniform(0.1, 5, n).round(4),
                }
            )
        )
        last = close[-1]
    pd.concat(frames).to_csv(ROOT / "candles.csv", index=False)


def make_stores() -> None:
    """Raw storage, lake, Dagster home and registry, in the order in which a user would have come to them."""
    first, second = simulate()
    record(first, "parquet", FAULTS)
    run("backfill", "--from", HOURS[0], "--to", HOURS[-1])
    run("evaluate")  # as of the newest closed hour alone: versions are registered, aliases set
    run("rollback", "--to", "2", "--reason", "the fixture wants a history")
    write_candles()
    run("import-bars", "candles.csv", "--product", "BTC-USD", "--no-report")
    run("backfill", "--timescale", "minutes", "--from", DAYS[0], "--to", DAYS[-1])
    run("evaluate", "--chain", "minutes_h5")
    record(second, "ndjson", "")  # an hour of which nothing is materialized yet
    for file in (first, second, ROOT / "candles.csv"):
        file.unlink()


def stage(folder: Path) -> None:
    """Copy what the archive holds, SQLite files without their empty pages."""
    left_out = shutil.ignore_patterns("home", "*.lock", "mlruns", "*.png", "*.gz", "*.csv", "*.ndjson.part")
    shutil.copytree(ROOT, folder, ignore=left_out)
    for database in folder.rglob("*.db"):
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("VACUUM")


@contextmanager
def opened(folder: Path) -> Iterator[Callable[..., Any]]:
    """Use the stores of a folder inside of this process; gives what runs a verb and reads its JSON."""
    from click.testing import CliRunner

    from cryptovol_dagster.cli import main as cryptovol

    def invoke(*verb: str) -> Any:
        result = CliRunner().invoke(cryptovol, verb, catch_exceptions=False)
        if result.exit_code:
            raise SystemExit(f"cryptovol {' '.join(verb)}: {result.output}")
        return json.loads(result.stdout)

    before = dict(os.environ)
    os.environ.pop("DAGSTER_HOME", None)
    os.environ |= {"CRYPTOVOL_CONFIG": str(folder / "config.yaml"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    try:
        yield invoke
    finally:
        os.environ.clear()
        os.environ |= before


def read_stores(folder: Path, staged: Path, repository: Path) -> dict[str, Any]:
    """Write down what the build before reads, then go on by an hour and write down what came of it."""
    from cryptovol_dagster.resources.instance import dagster_home, open_instance
    from cryptovol_dagster.resources.lake import Lake, partition_window
    from cryptovol_dagster.resources.tracking import connect
    from ingestor.archive.reader import RawReader
    from ingestor.archive.schema import SCHEMAS
    from ingestor.settings import load_settings

    with opened(folder) as invoke:
        settings = load_settings().settings
        lake, home = Lake(settings.storage.lake_dir), dagster_home(settings)
        client = connect(settings).client
        chains = list(hashes(settings))
        with open_instance(home) as instance:
            history = facts.dagster_facts(instance)
        found = {
            "commit": COMMIT,
            "machine": facts.machine_facts(),
            "raw": facts.raw_facts(RawReader(settings.storage.raw_dir), sorted(SCHEMAS)),
            "audit": invoke("audit", "--json"),
            "lake": facts.lake_facts(lake, partition_window),
            "hashes": hashes(settings),
            "dagster": history,
            "registry": facts.registry_facts(client),
            "probabilities": store_inputs(client, lake, staged / "inputs"),
            "champion": {chain: facts.champion_facts(invoke, chain) for chain in chains},
            "exported": facts.exported_facts(invoke, settings.storage.artifacts_dir),
            "history": invoke("import-bars", "--list", "--json")["products"],
            "settings": store_settings(folder, staged / "settings", repository),
        }
        invoke("backfill", "--from", NEXT_HOUR, "--to", NEXT_HOUR, "--market-only", "--json")
        found["next"] = {
            "hour": NEXT_HOUR,
            "evaluate": facts.next_facts(invoke("evaluate", "--json")),
            "champion": invoke("champion", "--json"),
            "aliases": facts.registry_facts(client)["models"][SECONDS_MODEL]["aliases"],
        }
        for asset in NEXT_TABLES:
            target = staged / "next" / f"{asset.replace('/', '-')}.parquet"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(lake.path(asset, NEXT_HOUR), target)
    return found


def hashes(settings: Any) -> dict[str, dict[str, str]]:
    """Name what stored rows and models mean, by chain."""
    from cryptovol_dagster.core.features import feature_hash
    from cryptovol_dagster.core.labels import label_hash
    from cryptovol_dagster.resources.specs import gate_spec, model_spec, models_of, timescale_specs

    return {
        name: {
            "features": feature_hash(spec),
            "labels": label_hash(spec),
            "timescale": spec.hash(),
            "models": model_spec(models_of(settings, spec)).hash(),
            "gate": gate_spec(models_of(settings, spec), spec).hash(),
        }
        for name, spec in timescale_specs(settings).items()
    }


def store_inputs(client: Any, lake: Any, folder: Path) -> dict[str, list[str]]:
    """Store a few rows for each registered version and return its probabilities of them."""
    import mlflow
    import pyarrow.parquet as pq

    from cryptovol_dagster.resources.lake import partition_window

    mlflow.set_tracking_uri(client.tracking_uri)
    folder.mkdir()
    found = {}
    for model in client.search_registered_models():
        features = f"{model.name.split('-')[1]}/features"
        rows = lake.read_table(features, *partition_window(lake.partitions(features)[-1])).to_pandas()
        rows = rows[rows["valid"]]
        for version in client.search_model_versions(f"name='{model.name}'"):
            name = f"{model.name}/{version.version}"
            loaded = mlflow.pyfunc.load_model(f"models:/{name}")
            columns = loaded.metadata.get_input_schema().input_names()
            given = folder / f"{name.replace('/', '-')}.parquet"
            some = rows[columns].iloc[:: max(1, len(rows) // ROWS_SCORED)].head(ROWS_SCORED)
            pq.write_table(pa.Table.from_pandas(some.astype("float64"), preserve_index=False), given)
            found[name] = facts.probabilities(loaded, given)
    return found


def store_settings(folder: Path, target: Path, repository: Path) -> dict[str, Any]:
    """Store every key there was as a file and as an environment; give what each configuration comes to."""
    import yaml

    from ingestor.settings import load_settings
    from ingestor.settings.model import Settings

    target.mkdir()
    shutil.copy(repository, target / "repository.yaml")
    every = Settings().model_dump(mode="json")
    (target / "every_key.yaml").write_text(yaml.safe_dump(every, sort_keys=False))
    flat = dict(leaves(every, "CRYPTOVOL"))
    (target / "environment.json").write_text(json.dumps(flat, indent=1))
    found = {"used": facts.settings_facts(load_settings(folder / "config.yaml").settings, folder)}
    for name in ("repository", "every_key"):
        loaded = load_settings(target / f"{name}.yaml", environ={}).settings
        found[name] = facts.settings_facts(loaded, target)
    with chdir(target):  # where no configuration stands
        found["environment"] = facts.settings_facts(load_settings(environ=flat).settings, target)
    return found


def leaves(section: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield each key as the environment names it, with its value as the environment gives it."""
    for name, value in section.items():
        key = f"{prefix}__{name.upper()}"
        if isinstance(value, dict) and value:
            yield from leaves(value, key)
        elif value is not None:
            yield key, value if isinstance(value, str) else json.dumps(value)


def pack(folder: Path, archive: Path) -> None:
    """Pack a folder; times of writing are kept (they order the files), owners are not."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(archive, "w:xz", preset=9 | lzma.PRESET_EXTREME) as file:
        for path in sorted(folder.iterdir()):
            file.add(path, path.name, filter=plain)


def refuse_another(build: Path) -> None:
    """Make sure that it is the build before that is at work here, unchanged."""
    import cryptovol_dagster

    found = Path(cryptovol_dagster.__file__).resolve().parent.parent
    if found != build:
        raise SystemExit(f"expected cryptovol of {build}, found {found}: use that checkout's interpreter")
    head, changed = (
        subprocess.run(["git", "-C", str(build), *asked], check=True, capture_output=True, text=True).stdout
        for asked in (("rev-parse", "HEAD"), ("diff", "--stat", "HEAD"))
    )
    if not head.startswith(COMMIT) or changed:
        raise SystemExit(f"expected commit {COMMIT} unchanged, found {head[:7]} {changed}")


def main() -> None:
    """Make the stores, write down what the build before reads in them, and pack them."""
    build = checkout()
    refuse_another(build)
    if ROOT.exists():
        raise SystemExit(f"{ROOT} exists: remove it first")
    (ROOT / "home").mkdir(parents=True)
    (ROOT / "config.yaml").write_text(CONFIG)
    (ROOT / ".env").write_text(DOTENV)
    make_stores()
    with tempfile.TemporaryDirectory() as scratch:
        staged, folder = Path(scratch) / "staged", Path(scratch) / "opened"
        stage(staged)
        shutil.copytree(staged, folder)
        facts.move_artifacts(folder / "data" / "mlflow" / "mlflow.db", folder)
        expected = read_stores(folder, staged, build / "config.yaml")
        text = json.dumps(expected, indent=1, sort_keys=True, allow_nan=False)
        (staged / EXPECTED).write_text(text + "\n")
        for word in (str(build), scratch):
            if word in text:
                raise SystemExit(f"{EXPECTED} holds a path of this machine: {word}")
        pack(staged, HERE / ARCHIVE)
    shutil.rmtree(ROOT)
    size = (HERE / ARCHIVE).stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{ARCHIVE} has {size:,} bytes, at most {MOST_BYTES:,} may be committed")
    print(f"{ARCHIVE}: {size:,} bytes")


if __name__ == "__main__":
    main()
