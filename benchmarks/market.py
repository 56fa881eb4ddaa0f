"""What is measured on: a seeded day of ten products, and the real two hours repeated to a million ticks."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.core.market.cleaning import clean_ticks
from cryptovol_dagster.core.market.ticks import TickColumns
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from ingestor.recordings import read_recording
from ingestor.settings.sections import Settings

ROOT = Path(__file__).resolve().parent.parent
RECORDING = ROOT.parent / "shared" / "data" / "recordings" / "btc_eth_2026-04-04_2h.ndjson.gz"
#: The recording is two hours long; half a minute between repeats is a gap, as after a reconnect.
REPEAT_NS = 7_230 * NS
DAY_START_NS = 1_775_260_800 * NS
DAY_S, N_PRODUCTS = 86_400, 10


def seconds_spec() -> TimescaleSpec:
    """The default `seconds` timescale."""
    return timescale_spec(Settings().timescales.seconds, "seconds")


def day_of_ticks() -> TickColumns:
    """A day of ten products: about a tick a second each, decimal prices, silences, gaps and lost messages."""
    random = np.random.default_rng(7)
    parts = []
    products = tuple(f"P{code}-USD" for code in range(N_PRODUCTS))
    for code in range(N_PRODUCTS):
        gaps = random.exponential(0.8, size=int(DAY_S * 1.4)) * random.choice(
            [0.1, 1.0, 3.0], size=int(DAY_S * 1.4)
        )
        gaps[random.integers(0, len(gaps), 12)] += random.uniform(12, 90, 12)
        times = np.cumsum(gaps)
        times = times[times < DAY_S]
        n = len(times)
        volatility = 3e-5 * np.exp(np.cumsum(random.normal(0, 0.003, n)))
        mid = (
            60_000
            / (code + 1)
            * np.exp(np.cumsum(random.normal(0, 1, n) * volatility * (random.random(n) < 0.5)))
        )
        bid = np.floor(mid * 100) / 100
        lost = np.zeros(n, dtype=bool)
        lost[random.integers(1, n, 5)] = True
        parts.append(
            {
                "product": np.full(n, code),
                "event_time_ns": DAY_START_NS + (times * NS).astype(np.int64),
                "bid": bid,
                "ask": bid + 0.01 * random.geometric(0.7, n),
                "bid_size": np.round(random.exponential(1, n), 8) + 1e-8,
                "ask_size": np.round(random.exponential(1, n), 8) + 1e-8,
                "gap_before": lost,
            }
        )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    n = len(columns["product"])
    order = np.argsort(columns["event_time_ns"], kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    zeros = {name: np.zeros(n) for name in ("connection", "event_index", "entry_index")}
    ticks = TickColumns.from_arrays(
        {
            **columns,
            **zeros,
            "price": columns["bid"],
            "sequence_num": np.arange(n),
            "products": products,
            "connections": ("day",),
        }
    )
    return clean_ticks(ticks, 2 * NS).ticks


def recorded_ticks(path: Path) -> TickColumns:
    """The recording's ticks."""
    return TickColumns.from_arrays(read_recording(path).ticks)


def repeated(ticks: TickColumns, times: int) -> Iterator[TickColumns]:
    """The ticks again and again, each time later and on a new connection."""
    for k in range(times):
        yield replace(
            ticks,
            event_time_ns=ticks.event_time_ns + k * REPEAT_NS,
            connections=tuple(f"{name}#{k}" for name in ticks.connections),
        )


def write_repeated(path: Path, times: int, out: Path) -> None:
    """The recording's lines again and again in one gzipped file; each time a connection begins."""
    with gzip.open(path, "rt") as file:
        lines = [json.loads(line) for line in file]
    moments = [_to_ns(line["frame"]["timestamp"]) for line in lines]
    with gzip.open(out, "wt", compresslevel=1) as file:
        for k in range(times):
            for line, moment in zip(lines, moments, strict=True):
                stamp = _to_text(moment + k * REPEAT_NS)
                line["frame"]["timestamp"] = line["received_at"] = stamp
                file.write(json.dumps(line, separators=(",", ":")) + "\n")


def _to_ns(text: str) -> int:
    whole, _, fraction = text.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * NS + int(fraction.ljust(9, "0") or 0)


def _to_text(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, NS)
    return f"{datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
