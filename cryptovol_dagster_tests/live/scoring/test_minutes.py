"""The minutes in `Scorer`: what it publishes equals the assets' rows, also over a restart."""

from __future__ import annotations

import threading
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from confluent_kafka import Producer

from cryptovol_dagster.chains import minutes_specs, timescale_spec
from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.features.row_hash import row_hashes
from cryptovol_dagster.core.market.candle_bars import candle_bars
from cryptovol_dagster.core.market.candle_rollup import join_candles, roll_up
from cryptovol_dagster.history.store import History
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.raw_ticks import RawStore, trade_columns
from cryptovol_dagster.live.scoring.minutes import MinutesTask
from cryptovol_dagster.live.scoring.progress import ScorerSummary
from cryptovol_dagster.live.scoring.scorer import Scorer
from cryptovol_dagster_tests.core.market.builders import START_NS
from cryptovol_dagster_tests.live.records import trade_value
from cryptovol_dagster_tests.live.scoring.test_scorer import published_scores
from ingestor.archive.schema import to_batch
from ingestor.envelope import (
    FEATURES_TOPIC,
    TICKS,
    TRADES,
    ScoreMessage,
    closed_partition,
    closing_message,
    encode,
)
from ingestor.kafka.broker import Broker
from ingestor.settings import Settings

PRODUCTS = ("BTC-USD", "ETH-USD")
MINUTE_NS, LOOK_BACK = 60 * 10**9, 2_600
SETTINGS = Settings()
SPECS = minutes_specs(SETTINGS.timescales.minutes)
#: The imported candles end before the feed begins, with which they overlap by a few minutes.
IMPORTED_UNTIL, FEED_FROM, HEARD_AT, UNTIL = 5, 0, 10, 40


def trade_values() -> list[tuple[str, bytes]]:
    """Four trades a minute and product; one is lost, and one product is quiet for a while."""
    random, values = np.random.default_rng(5), []
    for product in PRODUCTS:
        for number in range(UNTIL * 4):
            quiet = product == "ETH-USD" and 80 <= number < 100
            lost = product == "BTC-USD" and number == 90
            price = f"{67_000 + random.normal():.2f}".encode()
            if not quiet and not lost:
                # A quiet stretch uses up no ids.
                trade_id = number - 20 if product == "ETH-USD" and number >= 100 else number
                value = trade_value(number * 15 + 1, number=trade_id, product=product)
                values.append((product, value.replace(b"67000.01", price)))
    return values


def imported() -> pd.DataFrame:
    random, frames = np.random.default_rng(6), []
    starts = START_NS + np.arange(-LOOK_BACK, IMPORTED_UNTIL) * MINUTE_NS
    for product in PRODUCTS:
        close = 67_000 + np.cumsum(random.normal(size=len(starts))).round(2)
        prices = {"open": close, "high": close + 1, "low": close - 1, "close": close, "volume": 2.0}
        frames.append(pd.DataFrame({"product": product, "start_ns": starts, **prices}))
    return pd.concat(frames, ignore_index=True)


def of_assets() -> dict[tuple[str, int], str]:
    values = [value for _, value in trade_values()]
    table = pa.Table.from_batches([to_batch(TRADES, 0, 0, values, lambda _: 0, None)])
    start_ns, end_ns = START_NS - LOOK_BACK * MINUTE_NS, START_NS + UNTIL * MINUTE_NS
    feed = roll_up(trade_columns(table, PRODUCTS), start_ns, end_ns).candles
    candles = join_candles(imported(), feed, PRODUCTS)
    bars = candle_bars(candles, PRODUCTS, start_ns=start_ns, end_ns=end_ns, spec=SPECS[0])
    grid = compute_features(bars, SPECS[0], from_ns=START_NS)
    return {
        (product, int(start) + MINUTE_NS): row_hash
        for k, product in enumerate(grid.products)
        for start, row_hash in zip(
            grid.bar_starts_ns, row_hashes(np.ascontiguousarray(grid.values[:, k].T)), strict=True
        )
    }


def close(broker: Broker, minute: int) -> None:
    """Report both products' partitions as closed."""
    producer, count = Producer(broker.producer_config()), broker.partitions(TICKS)
    for number in {zlib.crc32(product.encode()) % count for product in PRODUCTS}:
        message = closing_message(number, START_NS + minute * MINUTE_NS + 10**9, "v")
        producer.produce(broker.topic(FEATURES_TOPIC), encode(message), partition=number)
    assert producer.flush(10) == 0


def run(broker: Broker, folder: Path, minute: int | None = None) -> ScorerSummary:
    """Score until a minute is published of both products and chains, or until nothing comes."""
    stop, waiting = threading.Event(), {(spec.name, product) for spec in SPECS for product in PRODUCTS}

    def note(messages: list[ScoreMessage]) -> None:
        for message in messages:
            if minute is not None and message.bar_end_ns == START_NS + minute * MINUTE_NS:
                waiting.discard((message.chain, message.product_id))
        if not waiting:
            stop.set()

    lake, tracking = Lake(folder / "lake"), f"sqlite:///{folder / 'mlflow.db'}"
    minutes = MinutesTask(SPECS, History(folder / "history"), RawStore(folder / "raw"), lake, tracking)
    spec = timescale_spec(SETTINGS.timescales.seconds, "seconds")
    scorer = Scorer(
        broker,
        spec,
        SETTINGS.live,
        lake=lake,
        tracking_uri=tracking,
        products=PRODUCTS,
        minutes=minutes,
        on_scores=note,
    )
    return scorer.run(stop, duration_s=60 if minute else None, until_idle_s=None if minute else 2)


@pytest.mark.slow
def test_minutes_are_scored_over_a_restart(embedded_broker: Broker, tmp_path: Path) -> None:
    broker, history = embedded_broker, History(tmp_path / "history")
    for product, candles in imported().groupby("product"):
        history.record(str(product), candles, source="test", now_ns=0)
    producer = Producer(broker.producer_config())
    for product, value in trade_values():
        producer.produce(broker.topic(TRADES), value, product.encode())
    assert producer.flush(10) == 0
    close(broker, HEARD_AT)
    close(broker, 25)
    first = run(broker, tmp_path, 25)
    assert set(first.progress.others) == {spec.name for spec in SPECS}
    close(broker, UNTIL)
    run(broker, tmp_path, UNTIL)

    expected = of_assets()
    for spec in SPECS:
        own = [message for message in published_scores(broker) if message.chain == spec.name]
        rows = [message for message in own if closed_partition(message) is None]
        keys = [(row.product_id, row.bar_end_ns) for row in rows]
        ends = range(START_NS + (HEARD_AT + 1) * MINUTE_NS, START_NS + UNTIL * MINUTE_NS + 1, MINUTE_NS)
        assert sorted(keys) == sorted((product, end) for product in PRODUCTS for end in ends)
        assert {key: row.row_hash for key, row in zip(keys, rows, strict=True)} == {
            key: expected[key] for key in keys
        }
        assert {row.reason for row in rows} >= {"no_model", "stale"}
        closed = max(message.bar_end_ns for message in own if closed_partition(message) is not None)
        assert closed == START_NS + UNTIL * MINUTE_NS


def test_without_imported_candles_no_minute_is_scored(embedded_broker: Broker, tmp_path: Path) -> None:
    close(embedded_broker, HEARD_AT)
    summary = run(embedded_broker, tmp_path)
    assert summary.progress.others == {}
    assert [m for m in published_scores(embedded_broker) if m.chain != "seconds"] == []
