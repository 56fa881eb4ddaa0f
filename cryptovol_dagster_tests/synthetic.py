"""A small market in raw storage, written with the recorder's own file writer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from cryptovol_dagster.core.times import HOUR_NS, hour_key, hour_window
from ingestor.archive.layout import ClosedHour, closing_path
from ingestor.archive.schema import SCHEMAS
from ingestor.archive.writer import OpenFile
from ingestor.envelope import EVENTS, TICKS, TRADES
from ingestor.settings import Settings
from ingestor.settings.sections import (
    CoinbaseSettings,
    DagsterSettings,
    MinutesSettings,
    ModelSettings,
    MonitoringSettings,
    SplitSettings,
    StorageSettings,
    TimescaleSettings,
    TimescalesSettings,
)

NS = 1_000_000_000
PRODUCTS = ("BTC-USD", "ETH-USD")
LOG_ID = "logtest1"
FIRST_HOUR = "2026-04-04-03:00"
MODELS = ("baseline_zscore", "ewma", "har_logit", "logreg", "xgboost")


def small_settings(
    folder: Path, *, first_hour: str = FIRST_HOUR, models: tuple[str, ...] = MODELS
) -> Settings:
    """Settings of a pipeline that learns in seconds: 5-s bars, short windows, small trees."""
    timescale = TimescaleSettings(
        bar_interval_s=5,
        windows_bars=(5, 15, 60),
        ewma_half_lives_bars=(5,),
        horizon_bars=15,
        retrain_every_hours=1,
        splits=SplitSettings(train_span_s=3 * 3_600, test_span_s=3_600),
    )
    return Settings(
        coinbase=CoinbaseSettings(products=PRODUCTS),
        storage=StorageSettings(
            data_dir=folder / "data", reports_dir=folder / "reports", artifacts_dir=folder / "artifacts"
        ),
        timescales=TimescalesSettings(seconds=timescale, minutes=MinutesSettings(enabled=False)),
        models=ModelSettings(
            enabled=models,  # type: ignore[arg-type] - names are validated by the model
            xgboost_trees=20,
            xgboost_min_child_weight=5.0,
            bootstrap_resamples=20,
        ),
        monitoring=MonitoringSettings(report_max_rows=500, drift_reference_hours=3),
        dagster=DagsterSettings(partitions_start=first_hour),
    )


def hours_from(first: str, count: int) -> list[str]:
    """Give `count` hours in a row."""
    start_ns, _ = hour_window(first)
    return [hour_key(start_ns + hour * HOUR_NS) for hour in range(count)]


def write_market(
    raw_dir: Path,
    hours: Sequence[str],
    *,
    seed: int = 7,
    step_s: float = 2.5,
    gap_in: str | None = None,
    close: bool = True,
    moving: bool = True,
    first_offset: int = 0,
    products: Sequence[str] = PRODUCTS,
    connection: str = "c0ffee",
    log_id: str = LOG_ID,
) -> None:
    """Write whole hours of ticks, trades and events.

    Args:
        raw_dir: root of raw storage.
        hours: keys in a row.
        seed: of prices; the same hours with the same seed are the same bytes.
        step_s: seconds between two ticks of a product.
        gap_in: an hour in which a hundred seconds of sequence numbers are lost.
        close: record the hours as closed.
        moving: whether prices move at all.
        first_offset: Kafka offset of the first message of a partition, for hours written in a second call: as
            many as each product has ticks before.
        products: those recorded.
        connection: the recorder's.
        log_id: of its topics; a recorder that came later has another.
    """
    # A frame for each product's tick, and one with a trade of each.
    frames = len(products) + 1
    offset, first_sequence = first_offset, frames * first_offset
    for index, key in enumerate(hours):
        start_ns, _ = hour_window(key)
        random = np.random.default_rng(seed + index)
        steps = int(3_600 / step_s)
        times = start_ns + (np.arange(steps) * step_s * NS).astype(np.int64)
        sequence = first_sequence + np.arange(steps) * frames
        keep = np.ones(steps, dtype=bool)
        if key == gap_in:
            keep[steps // 2 : steps // 2 + int(100 / step_s)] = False
        regime = np.where((np.arange(steps) // (steps // 12)) % 4 == 3, 6.0, 1.0)
        for number, product in enumerate(products):
            moves = random.normal(size=steps) * 2e-5 * regime * moving
            mid = (60_000 / (1 + 19 * number)) * np.exp(np.cumsum(moves))
            size = random.uniform(0.1, 2.0, size=(2, steps))
            ticks = {
                "product_id": [product] * steps,
                "event_time_ns": times + number,
                "received_at_ns": times + number + 50_000_000,
                "connection_id": [connection] * steps,
                "sequence_num": sequence + number,
                "event_index": np.zeros(steps, np.int16),
                "entry_index": np.zeros(steps, np.int16),
                "event_type": ["update"] * steps,
                "price": mid,
                "best_bid": mid - 0.005,
                "best_ask": mid + 0.005,
                "best_bid_quantity": size[0],
                "best_ask_quantity": size[1],
                "payload": ["{}"] * steps,
            }
            _publish(raw_dir, TICKS, number, offset, ticks, keep, log_id)
            trades = {
                **{name: ticks[name] for name in list(ticks)[:8]},
                "sequence_num": sequence + len(products),
                "trade_id": [str(offset + i) for i in range(steps)],
                "price": mid,
                "size": size[0],
                "side": ["BUY" if up else "SELL" for up in moves < 0],
                "trade_time_ns": times + number,
                "payload": ["{}"] * steps,
            }
            _publish(raw_dir, TRADES, number, offset, trades, keep, log_id)
        offset += int(keep.sum())
        lost = sequence[~keep]
        gap = (int(lost[0]), int(lost[-1]) + frames - 1) if len(lost) else None
        back_ns = int(times[np.flatnonzero(~keep)[-1] + 1]) if len(lost) else 0
        _write_events(
            raw_dir,
            2 * (first_offset // steps + index),
            (first_sequence, first_sequence + frames * steps - 1),
            int(times[-1]) + 1,
            {"ticker": len(products) * int(keep.sum()), "market_trades": int(keep.sum())},
            gap,
            back_ns,
            connection,
            log_id,
        )
        first_sequence += frames * steps
        if close:
            rows = len(products) * int(keep.sum())
            close_hour(raw_dir, key, {TICKS: rows, TRADES: rows})


def close_hour(raw_dir: Path, key: str, rows: dict[str, int], **changes: int) -> None:
    """Record an hour as complete, as the archive does.

    Args:
        raw_dir: root of raw storage.
        key: the hour.
        rows: its records by topic.
        changes: other fields of the record; with `revision` it closes again.
    """
    start_ns, end_ns = hour_window(key)
    closed = msgspec.structs.replace(
        ClosedHour(hour=key, closed_at_ns=end_ns + 130 * NS, watermark_ns=end_ns + 121 * NS, rows=rows),
        **changes,
    )
    path = closing_path(raw_dir, start_ns, closed.revision)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(closed))


def _write_events(
    raw_dir: Path,
    first_offset: int,
    window: tuple[int, int],
    time_ns: int,
    told_frames: dict[str, int],
    gap: tuple[int, int] | None,
    back_ns: int,
    connection: str,
    log_id: str,
) -> None:
    """Write two events of an hour: its gap (else that the clock is skewed), and its checkpoint."""
    told: dict[str, int] = {}
    if gap is not None:
        told = {"from_sequence": gap[0], "to_sequence": gap[1], "count": gap[1] - gap[0] + 1}
    checkpoint = {
        "from_sequence": window[0],
        "to_sequence": window[1],
        "frames": told_frames,
        "empty_frames": 0,
        "dead_frames": 0,
        "missing": told.get("count", 0),
        "repeats": 0,
        "offsets": {},
    }
    times = [back_ns or time_ns, time_ns]
    events = {
        "kind": ["clock_skew" if gap is None else "gap", "checkpoint"],
        "at_ns": times,
        "connection_id": [connection] * 2,
        "event_time_ns": times,
        "payload": [json.dumps(told), json.dumps(checkpoint)],
    }
    _publish(raw_dir, EVENTS, 0, first_offset, events, np.array([True, True]), log_id)


def _publish(
    raw_dir: Path,
    topic: str,
    partition: int,
    first_offset: int,
    columns: dict,
    keep: np.ndarray,
    log_id: str,
) -> None:
    rows = int(keep.sum())
    columns = {name: pa.array(values, SCHEMAS[topic].field(name).type) for name, values in columns.items()}
    table = {name: values.filter(pa.array(keep)) for name, values in columns.items()}
    table |= {
        "kafka_partition": pa.array(np.full(rows, partition, np.int32)),
        "kafka_offset": pa.array(np.arange(first_offset, first_offset + rows)),
        "schema_version": pa.array(np.ones(rows, np.int16)),
    }
    batch = pa.RecordBatch.from_arrays([table[field.name] for field in SCHEMAS[topic]], schema=SCHEMAS[topic])
    file = OpenFile(raw_dir, topic, log_id, partition, first_offset)
    file.append(batch, rows)
    file.publish()
