"""`make soak`: a long Kafka outage, then many SIGKILLs of the recorder, while the market plays.

python -m cryptovol_dagster_tests.soak --outage-s 120 --kills 50
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from cryptovol_dagster_tests.brokers import KafkaInstance, new_instance
from cryptovol_dagster_tests.e2e.processes import CRYPTOVOL, cryptovol, environment, simulated
from cryptovol_dagster_tests.faults.conservation import assert_exactly_once, assert_same_messages, raw_files
from ingestor.archive.reader import RawReader
from ingestor.envelope import TICKS, TOPICS
from ingestor.kafka.broker import connect
from ingestor.settings import Settings
from ingestor.settings.sections import KafkaSettings, StorageSettings

PRODUCTS = "BTC-USD,ETH-USD"


def main() -> None:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--outage-s", type=float, default=120.0, help="how long Kafka is away")
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs of the recorder after that")
    parser.add_argument("--longest-life-s", type=float, default=6.0, help="of a recorder before its SIGKILL")
    parser.add_argument("--speed", type=float, default=300.0, help="of the market")
    parser.add_argument("--seed", type=int, default=20260404, help="of the moments of the SIGKILLs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cryptovol-soak-") as folder:
        _soak(Path(folder), arguments)


def _soak(folder: Path, arguments: argparse.Namespace) -> None:
    kafka = new_instance(folder / "kafka")
    say("starting Kafka")
    kafka.start()
    storage = StorageSettings(
        data_dir=folder / "data",
        reports_dir=folder / "reports",
        artifacts_dir=folder / "artifacts",
        flush_s=0.5,
        flush_rows=2_000,
    )
    broker_settings = KafkaSettings(
        bootstrap_servers=kafka.bootstrap_servers, topic_prefix=f"soak-{uuid.uuid4().hex[:8]}."
    )
    env = environment(Settings(kafka=broker_settings, storage=storage), folder)
    # Long enough for whatever was asked for, on a machine a few times slower than it should be.
    life_s = 3 * arguments.outage_s + arguments.kills * (arguments.longest_life_s + 10) + 120
    market_hours = life_s * arguments.speed / 3600
    market = ("--hours", f"{market_hours:.1f}", "--products", PRODUCTS, "--speed", f"{arguments.speed:g}")
    rows: list[tuple[str, Any]] = []
    try:
        with simulated(*market, env=env) as server:
            rows += _outage(kafka, server.url, env, storage.raw_dir, arguments.outage_s, folder)
            rows += _kills(server.url, env, storage.raw_dir, arguments)
            say("a last recorder stores what is left")
            last = cryptovol("ingest", "--url", server.url, "--duration", "10", "--json", env=env)
            assert last.returncode == 0, last.stderr
        say("holding raw storage against Kafka, offset by offset")
        with connect(broker_settings) as broker:
            rows.append(
                ("Kafka offsets, each stored exactly once", assert_exactly_once(broker, storage.raw_dir))
            )
            assert_same_messages(broker, storage.raw_dir)
        lost = sum(len(RawReader(storage.raw_dir).offset_gaps(topic)) for topic in TOPICS)
        assert lost == 0, f"{lost} offset gaps"
        rows.append(("offset gaps", lost))
        rows.append(("hours closed", len(RawReader(storage.raw_dir).closed_hours())))
        rows.append(("cryptovol audit", _audit(env)))
    finally:
        kafka.run("stop")
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _outage(
    kafka: KafkaInstance, url: str, env: dict[str, str], raw_dir: Path, outage_s: float, folder: Path
) -> list[tuple[str, Any]]:
    """Kill Kafka under a recorder, start it again later, and stop the recorder once it stores again."""
    log = folder / "outage.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*CRYPTOVOL, "ingest", "--url", url, "--json"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            _wait_for_files(process, raw_dir, 4, log)
            say(f"Kafka is killed, for {outage_s:g} s")
            kafka.kill()
            most_bytes, end = 0, time.monotonic() + outage_s
            while time.monotonic() < end:
                assert process.poll() is None, log.read_text()
                most_bytes = max(most_bytes, psutil.Process(process.pid).memory_info().rss)
                time.sleep(1)
            kafka.start()
            say("Kafka is back")
            _wait_for_files(process, raw_dir, 4, log)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=300)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 0, log.read_text()
    summary = json.loads(output.splitlines()[-1])
    assert (summary["feed"]["gaps"], summary["feed"]["reconnects"]) == (0, 0), summary
    assert summary["kafka"]["outages"] >= 1, summary
    return [
        ("frames over the outage, none missing", summary["feed"]["frames"]),
        ("outage, s", summary["kafka"]["outage_s"]),
        ("messages spilled", summary["kafka"]["spilled_messages"]),
        ("most memory of the recorder, MiB", most_bytes // 1024**2),
        ("socket not read, s", summary["waited_for_room_s"]),
    ]


def _kills(
    url: str, env: dict[str, str], raw_dir: Path, arguments: argparse.Namespace
) -> list[tuple[str, Any]]:
    moments, stored = random.Random(arguments.seed), 0
    for number in range(1, arguments.kills + 1):
        before = len(raw_files(raw_dir))
        process = subprocess.Popen(
            [*CRYPTOVOL, "ingest", "--url", url, "--json"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "started"
        time.sleep(moments.uniform(0, arguments.longest_life_s))
        assert process.poll() is None, "the recorder ended by itself"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        stored += len(raw_files(raw_dir)) > before
        if number % 10 == 0 or number == arguments.kills:
            say(f"{number} of {arguments.kills} SIGKILLs, {stored} of recorders that had stored something")
    assert stored > arguments.kills // 4
    return [("SIGKILLs", arguments.kills), ("of recorders that had stored something", stored)]


def _audit(env: dict[str, str]) -> str:
    if cryptovol("audit", "--help", env=env).returncode != 0:
        return "not there"
    audit = cryptovol("audit", "--json", env=env, timeout_s=600)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    return "every sequence number is accounted for"


def _wait_for_files(process: subprocess.Popen[str], raw_dir: Path, count: int, log: Path) -> None:
    enough = len(raw_files(raw_dir, TICKS)) + count
    deadline = time.monotonic() + 180
    while len(raw_files(raw_dir, TICKS)) < enough:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
