"""A synthetic week in raw storage: what a recorder would have left, written in seconds.

Ticks of two products with volatility that clusters (a log-OU process and wild spells, shared between the
products), trades, and the checkpoints that account for every sequence number, so that the blocking audit of
each hour passes as it would on a real recording.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import HOUR_NS, hour_key, hour_window
from ingestor.archive.layout import CLOSED, ClosedHour, hour_folder
from ingestor.archive.schema import SCHEMAS
from ingestor.archive.writer import OpenFile
from ingestor.envelope import EVENTS, TICKS, TRADES

LOG_ID = "weeklog1"
PRICES = {"BTC-USD": 67_000.0, "ETH-USD": 2_050.0}
#: The real recording holds about two ticks a second of a product.
STEP_S = 0.5
#: Volatility of a calm second, and how much wilder a spell is; a spell comes every few hours.
CALM_SIGMA, WILD = 4.5e-5, 3.5
#: A real entry is about this long, and raw storage keeps it.
PAYLOAD = json.dumps({"type": "ticker", "product_id": "BTC-USD", "padding": "x" * 330})


def hours_from(first: str, count: int) -> list[str]:
    """Name hours in a row."""
    start_ns, _ = hour_window(first)
    return [hour_key(start_ns + hour * HOUR_NS) for hour in range(count)]


def write_week(raw_dir: Path, hours: Sequence[str], seed: int = 7) -> int:
    """Write whole hours of ticks, trades and checkpoints; returns the number of ticks.

    Args:
        raw_dir: root of raw storage.
        hours: keys in a row.
        seed: the same hours with the same seed are the same rows.
    """
    steps = int(HOUR_NS / NS / STEP_S)
    sequence, offset = 0, 0
    for number, (key, mids, random) in enumerate(_hours_of_prices(hours, steps, seed)):
        times = hour_window(key)[0] + (np.arange(steps) * STEP_S * NS).astype(np.int64)
        # Three numbers a step: a tick of each product, and one frame with a trade of both.
        numbers = sequence + 3 * np.arange(steps)
        for partition, (product, mid) in enumerate(mids.items()):
            envelope = _envelope(product, times + partition, numbers + partition)
            _publish(raw_dir, TICKS, partition, offset, envelope | _quotes(random, mid))
            envelope["sequence_num"] = numbers + 2
            _publish(raw_dir, TRADES, partition, offset, envelope | _trades(random, mid, times, offset))
        _publish(raw_dir, EVENTS, 0, number, _checkpoint(sequence, steps, int(times[-1])))
        _close(raw_dir, key, steps)
        sequence, offset = sequence + 3 * steps, offset + steps
    return 2 * offset


def _hours_of_prices(
    hours: Sequence[str], steps: int, seed: int
) -> Iterator[tuple[str, dict[str, np.ndarray], np.random.Generator]]:
    """Give each hour's mids: one log price a product, going on where the last hour left it."""
    log_vol, wild, logs = 0.0, False, dict.fromkeys(PRICES, 0.0)
    for number, key in enumerate(hours):
        random = np.random.default_rng((seed, number))
        volatility = np.empty(steps)
        shocks, switches = random.normal(size=steps), random.random(steps)
        for i in range(steps):
            log_vol += -log_vol * STEP_S / 180 + 0.35 * np.sqrt(2 * STEP_S / 180) * shocks[i]
            wild = switches[i] > STEP_S / 600 if wild else switches[i] < STEP_S / 5_400
            volatility[i] = CALM_SIGMA * np.exp(log_vol) * (WILD if wild else 1.0)
        moved = random.random(steps) < np.where(volatility > 2 * CALM_SIGMA, 0.9, 0.6)
        common = random.normal(size=steps)
        mids = {}
        for name, price in PRICES.items():
            noise = np.sqrt(0.7) * common + np.sqrt(0.3) * random.normal(size=steps)
            path = logs[name] + np.cumsum(moved * noise * volatility * np.sqrt(STEP_S))
            logs[name] = float(path[-1])
            mids[name] = price * np.exp(path)
        yield key, mids, random


def _envelope(product: str, times: np.ndarray, numbers: np.ndarray) -> dict[str, Any]:
    steps = times.size
    return {
        "product_id": [product] * steps,
        "event_time_ns": times,
        "received_at_ns": times + 50_000_000,
        "connection_id": ["c0ffee"] * steps,
        "sequence_num": numbers,
        "event_index": np.zeros(steps, np.int16),
        "entry_index": np.zeros(steps, np.int16),
        "event_type": ["update"] * steps,
        "payload": [PAYLOAD] * steps,
    }


def _quotes(random: np.random.Generator, mid: np.ndarray) -> dict[str, Any]:
    bid = np.floor(mid * 100) / 100
    return {
        "price": np.round(mid, 2),
        "best_bid": bid,
        "best_ask": bid + 0.01 * random.geometric(0.75, mid.size),
        "best_bid_quantity": random.lognormal(-2, 1, mid.size),
        "best_ask_quantity": random.lognormal(-2, 1, mid.size),
    }


def _trades(random: np.random.Generator, mid: np.ndarray, times: np.ndarray, offset: int) -> dict[str, Any]:
    buys = random.random(mid.size) < 0.5
    return {
        "trade_id": [str(offset + i) for i in range(mid.size)],
        "price": np.round(mid, 2),
        "size": random.lognormal(-4, 1, mid.size),
        "side": np.where(buys, "SELL", "BUY").tolist(),
        "trade_time_ns": times,
    }


def _checkpoint(first: int, steps: int, time_ns: int) -> dict[str, Any]:
    detail = {
        "from_sequence": first,
        "to_sequence": first + 3 * steps - 1,
        "frames": {"ticker": 2 * steps, "market_trades": steps},
        "empty_frames": 0,
        "dead_frames": 0,
        "missing": 0,
        "repeats": 0,
        "offsets": {},
    }
    return {
        "kind": ["checkpoint"],
        "at_ns": [time_ns + 2],
        "connection_id": ["c0ffee"],
        "event_time_ns": [time_ns + 2],
        "payload": [json.dumps(detail)],
    }


def _close(raw_dir: Path, key: str, steps: int) -> None:
    start_ns, end_ns = hour_window(key)
    closed = ClosedHour(
        hour=key,
        closed_at_ns=end_ns + 130 * NS,
        watermark_ns=end_ns + 121 * NS,
        rows={TICKS: 2 * steps, TRADES: 2 * steps},
    )
    path = hour_folder(raw_dir / CLOSED, start_ns).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(closed))


def _publish(raw_dir: Path, topic: str, partition: int, first_offset: int, columns: dict[str, Any]) -> None:
    schema = SCHEMAS[topic]
    rows = len(columns["event_time_ns"])
    columns = columns | {
        "kafka_partition": np.full(rows, partition, np.int32),
        "kafka_offset": np.arange(first_offset, first_offset + rows),
        "schema_version": np.ones(rows, np.int16),
    }
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    file = OpenFile(raw_dir, topic, LOG_ID, partition, first_offset)
    file.append(pa.RecordBatch.from_arrays(arrays, schema=schema), rows)
    file.publish()
