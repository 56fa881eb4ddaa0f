"""SIGKILL of the whole recorder, feed and archive, while the market goes on."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from cryptovol_dagster_tests.e2e.processes import CRYPTOVOL, cryptovol, environment, simulated
from cryptovol_dagster_tests.faults.conservation import (
    assert_exactly_once,
    assert_same_messages,
    raw_files,
    stored_runs,
)
from ingestor.archive.reader import RawReader
from ingestor.audit.hours import audit
from ingestor.envelope import DEAD, TICKS, TRADES
from ingestor.kafka.broker import Broker
from ingestor.settings import Settings
from ingestor.settings.sections import StorageSettings

#: `make soak` kills it fifty times.
KILLS = 15
PRODUCTS = ("BTC-USD", "ETH-USD")
MARKET = ("--hours", "3", "--seed", "20260404", "--products", ",".join(PRODUCTS))
#: Fifteen short lives play about half an hour of the three.
SPEED = "300"
#: channel -> topic of its entries, and what a frame calls them
ENTRIES = {"ticker": (TICKS, "tickers"), "market_trades": (TRADES, "trades")}
#: A connection hears the market after about half a second, a first file takes a little longer.
LONGEST_LIFE_S = 1.6


@pytest.mark.kafka
@pytest.mark.slow
def test_ingest_killed_at_random_moments(real_broker: Broker, tmp_path: Path) -> None:
    storage = StorageSettings(
        data_dir=tmp_path / "data",
        reports_dir=tmp_path / "reports",
        artifacts_dir=tmp_path / "artifacts",
        flush_s=0.15,
        flush_rows=400,
    )
    env = environment(Settings(kafka=real_broker.settings, storage=storage), tmp_path)
    script = tmp_path / "market.ndjson"
    written = cryptovol("simulate", *MARKET, "--write", script, env=env)
    assert written.returncode == 0, written.stderr

    moments = random.Random(20260404)
    lives_that_stored = 0
    with simulated(*MARKET, "--speed", SPEED, env=env) as market:
        for _ in range(KILLS):
            before = len(raw_files(storage.raw_dir))
            _live_and_die(market.url, env, moments.uniform(0, LONGEST_LIFE_S))
            lives_that_stored += len(raw_files(storage.raw_dir)) > before
        last = cryptovol("ingest", "--url", market.url, "--duration", "4", "--json", env=env)
    assert last.returncode == 0, last.stderr
    assert lives_that_stored > KILLS // 4

    assert assert_exactly_once(real_broker, storage.raw_dir) > 5_000
    assert_same_messages(real_broker, storage.raw_dir)
    assert RawReader(storage.raw_dir).offset_gaps(TICKS) == []
    audited = audit(RawReader(storage.raw_dir))
    assert audited.findings == ()
    # The market stands still while nobody listens: nothing but what died in flight can be lost.
    assert {loss.kind for loss in audited.losses} <= {"in_flight", "between"}
    assert audited.total("stored") > 5_000
    told = cryptovol("audit", env=env)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.splitlines()[-1] == audited.verdict
    assert real_broker.end_offsets(DEAD) == {0: 0}
    for (topic, product), played in played_entries(script).items():
        runs = stored_runs(storage.raw_dir, topic, product)
        assert len(runs) > KILLS // 4
        _assert_in_order_with_losses_only_between(runs, played)


def _live_and_die(url: str, env: dict[str, str], seconds: float) -> None:
    process = subprocess.Popen(
        [*CRYPTOVOL, "ingest", "--url", url, "--json"], env=env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "started"
    time.sleep(seconds)
    assert process.poll() is None, "the recorder ended by itself"
    process.kill()
    process.communicate()


def played_entries(script: Path) -> dict[tuple[str, str], list[str]]:
    """Every entry that the market holds, in order, by topic and product."""
    played: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in script.read_text().splitlines():
        frame = json.loads(line)["frame"]
        topic, name = ENTRIES.get(frame["channel"], (None, None))
        if topic is not None:
            for event in frame["events"]:
                for entry in event[name]:
                    text = json.dumps(entry, separators=(",", ":"))
                    played[topic, entry["product_id"]].append(text)
    return played


def _assert_in_order_with_losses_only_between(runs: Sequence[list[str]], played: list[str]) -> None:
    """Each connection's entries are played ones without a hole; what died in flight lies between them."""
    at = 0
    for run in runs:
        at = next(start for start in range(at, len(played)) if played[start : start + len(run)] == run) + len(
            run
        )
