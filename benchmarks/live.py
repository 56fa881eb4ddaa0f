"""`make bench-live`: from a second's end to its row in ticks.scores, and the cost of the live path.

A synthetic market in real time, a real Kafka, and the real commands: simulator, recorder, featurizer, scorer
with its alerts (a rule for each product, and a webhook on loopback). Before the market begins, Kafka contains
what an earlier run left (`benchmarks.live_start`), so that rows are scored. The market's clock differs from
the wall's by the time that the simulator needs to start; the least delay of a tick in the measured span,
socket included, counts as that difference. Delays are beyond the allowance of lateness.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from confluent_kafka import Consumer, TopicPartition

from benchmarks import market
from benchmarks.live_start import champion, earlier_run, join_kb
from benchmarks.performance_page import publish
from benchmarks.recorder import kafka
from benchmarks.run import bare_environment
from benchmarks.table import Line, machine
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster_tests.webhook import receiving
from ingestor.envelope import DECODERS, FEATURES_TOPIC, SCORES_TOPIC, TICKS, closed_partition
from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.kafka.broker import Broker, connect
from ingestor.settings import Settings
from ingestor.settings.sections import KafkaSettings

#: Limits: of the 99 % quantile of the delay by number of products, and of a core for the live path.
DELAY_MS = {2: 80.0, 50: 250.0}
LIVE_CORE_SHARE, JOIN_KB = 0.08, 200.0
#: Seconds after the start that do not count: processes import, models load, the group forms.
_WARM_UP_S = 30.0
#: A product whose probability is at least this raises an alert.
_ALERT_AT = 0.5


class Delays(NamedTuple):
    """Milliseconds from a second's end to its score, and to its row in ticks.features."""

    score_ms: np.ndarray
    row_ms: np.ndarray


@contextmanager
def command(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a verb while the block lasts; it has printed its first line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cryptovol_dagster.cli", *arguments, "--json"],
        cwd=market.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        process.first = json.loads(process.stdout.readline())  # type: ignore[attr-defined]
        yield process
    finally:
        process.terminate()
        process.communicate()


def messages_of(broker: Broker, topic: str) -> list[tuple[int, Any]]:
    """Read a whole topic: when each message was published (ns), and the message."""
    consumer, decode = Consumer(broker.consumer_config("bench-live")), DECODERS[topic].decode
    found: list[tuple[int, Any]] = []
    for partition, end in broker.end_offsets(topic).items():
        last = -1
        consumer.assign([TopicPartition(broker.topic(topic), partition, 0)])
        while last < end - 1:
            for message in consumer.consume(5_000, 0.2):
                found.append((message.timestamp()[1] * 1_000_000, decode(message.value() or b"")))
                last = message.offset() or 0
    consumer.close()
    return found


def measure(n_products: int, seconds: float) -> list[Line]:
    """Run the live path for so long; return the lines of the table."""
    products = [f"P{number:03d}-USD" for number in range(n_products - 2)]
    products = ["BTC-USD", "ETH-USD", *products]
    with tempfile.TemporaryDirectory(prefix="cryptovol-live-") as name, ExitStack() as stack:
        folder = Path(name)
        servers = stack.enter_context(kafka(folder))
        webhook = stack.enter_context(receiving())
        rules = [
            {"name": product, "when": "probability", "products": [product], "at_least": _ALERT_AT}
            for product in products
        ]
        settings = {
            "ALERTS__TARGETS__HOOK": webhook.url.replace("http:", "json:"),
            "ALERTS__RULES": json.dumps(rules),
            "STORAGE__DATA_DIR": str(folder / "data"),
            "KAFKA__BOOTSTRAP_SERVERS": servers,
            "COINBASE__PRODUCTS": json.dumps(products),
        }
        environment = bare_environment() | {f"CRYPTOVOL__{key}": value for key, value in settings.items()}
        champion(Lake(folder / "data" / "lake"))
        start_ns = time.time_ns() // NS * NS
        with connect(KafkaSettings(bootstrap_servers=servers)) as broker:
            broker.ensure_topics()
            earlier_run(broker, products, start_ns)
        start = ns_to_rfc3339(start_ns)
        played = ("simulate", "--products", ",".join(products), "--hours", "0.5", "--start", start)
        simulator = stack.enter_context(command(environment, *played))
        url = simulator.first["url"]  # type: ignore[attr-defined]
        stack.enter_context(command(environment, "ingest", "--url", url))
        # The market waited for the recorder; whoever followed the feed before would be ahead of it.
        featurizer = stack.enter_context(command(environment, "featurize"))
        scorer = stack.enter_context(command(environment, "score"))
        time.sleep(_WARM_UP_S)
        watched = {"featurizer": psutil.Process(featurizer.pid), "scorer": psutil.Process(scorer.pid)}
        before = {what: _cpu_s(process) for what, process in watched.items()}
        since_ns, began_s = time.time_ns(), time.monotonic()
        time.sleep(seconds)
        took_s = time.monotonic() - began_s
        cpu = {what: _cpu_s(process) - before[what] for what, process in watched.items()}
        memory = {what: process.memory_full_info().pss / 1e6 for what, process in watched.items()}
        with connect(KafkaSettings(bootstrap_servers=servers)) as broker:
            found, n_rows, n_scored, entries = delays(broker, since_ns)
        n_alerts = len(webhook.bodies)
    share = sum(cpu.values()) / took_s
    detail = ", ".join(f"{what} {cpu[what] / took_s:.1%}, {memory[what]:.0f} MB PSS" for what in watched)
    detail += f"; alerts run in the scorer: {len(products)} rules, {n_alerts} sent"
    low, high = np.quantile(found.score_ms, [0.5, 0.99])
    row_low, row_high = np.quantile(found.row_ms, [0.5, 0.99])
    what = f"{n_products} products"
    lines = [
        Line(
            f"end of a second → ticks.scores, {what}, p99",
            float(high),
            DELAY_MS.get(n_products, float("inf")),
            "ms",
            f"p50 {low:.0f} ms, greatest {found.score_ms.max():.0f} ms; row in ticks.features: p50 "
            f"{row_low:.0f} ms, p99 {row_high:.0f} ms; {n_rows:,} rows, {n_scored / n_rows:.0%} with a "
            f"probability, {entries / took_s:.0f} ticks/s; beyond the allowance of lateness",
            at_most=True,
        )
    ]
    limit = LIVE_CORE_SHARE if n_products == 2 else float("inf")
    lines.append(
        Line(f"featurizer, scorer and alerts, {what}", share, limit, "of a core", detail, at_most=True)
    )
    lines.append(
        Line(
            f"join of the scorer, {what}",
            join_kb(n_products),
            JOIN_KB,
            "kB a product",
            "by tracemalloc, with as many rows as it ever holds",
            at_most=True,
        )
    )
    return lines


def _cpu_s(process: psutil.Process) -> float:
    """Return the processor time of a process and of its children that ended: each alert has one."""
    return sum(process.cpu_times()[:4])


def delays(broker: Broker, since_ns: int) -> tuple[Delays, int, int, int]:
    """Return the delays of first scores since a time, rows, how many have a probability, and ticks."""
    ticks = [tick for _, tick in messages_of(broker, TICKS) if tick.received_at_ns >= since_ns]
    offset_ns, entries = min(tick.received_at_ns - tick.event_time_ns for tick in ticks), len(ticks)
    due_ns = round(Settings().live.lateness_s * NS) + offset_ns

    def first(topic: str) -> dict[tuple[str, int], tuple[int, Any]]:
        return {
            (message.product_id, message.bar_end_ns): (at_ns, message)
            for at_ns, message in messages_of(broker, topic)
            if closed_partition(message) is None and not message.revision and at_ns >= since_ns
        }

    rows, scores = first(FEATURES_TOPIC), first(SCORES_TOPIC)
    scored = sum(message.probability is not None for _, message in scores.values())
    both = [(rows[key][0], at_ns, key[1]) for key, (at_ns, _) in scores.items() if key in rows]
    row_ns, score_ns, end_ns = np.array(both, dtype=np.int64).T
    found = Delays((score_ns - end_ns - due_ns) / 1e6, (row_ns - end_ns - due_ns) / 1e6)
    return found, len(scores), scored, entries


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--products", type=int, action="append", help="how many (default: 2, 50 and 400)")
    parser.add_argument("--seconds", type=float, default=120.0, help="measure for so long")
    asked = parser.parse_args()
    print(machine())
    lines: list[Line] = []
    for n_products in asked.products or (2, 50, 400):
        lines += measure(n_products, asked.seconds)
        print(*(line.row() for line in lines[-3:]), sep="\n", flush=True)
    publish("live", f"a synthetic market in real time, {asked.seconds:g} s each", lines)


if __name__ == "__main__":
    main()
