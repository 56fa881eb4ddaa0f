"""Raw files become the core's columns: order, gap flags, trades."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cryptovol_dagster.core.market.cleaning import flag_gaps
from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster_tests import synthetic
from cryptovol_dagster_tests.core.market.builders import ticks_of
from cryptovol_dagster_tests.ingestor.archive.messages import closing, score
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, PRODUCTS, hours_from, write_market
from ingestor.archive.schema import SCHEMAS, to_batch
from ingestor.archive.writer import OpenFile
from ingestor.envelope import EVENTS, SCORES_TOPIC


def test_a_recorded_gap_flags_the_next_row_of_every_product(tmp_path: Path) -> None:
    write_market(tmp_path, [FIRST_HOUR], gap_in=FIRST_HOUR)
    raw = RawStore(tmp_path)
    (loss,) = raw.audit(*hour_window(FIRST_HOUR)).losses
    gaps = {loss.connection_id: np.array([loss.from_sequence])}
    ticks = raw.ticks(*hour_window(FIRST_HOUR), PRODUCTS, gaps)
    flagged = np.flatnonzero(ticks.gap_before)
    assert sorted(ticks.product[flagged].tolist()) == [0, 1]
    for row in flagged:
        assert ticks.event_time_ns[row] - ticks.event_time_ns[row - 1] == 102_500_000_000


def test_other_products_are_left_out_and_silent_ones_stay_listed(tmp_path: Path) -> None:
    write_market(tmp_path, [FIRST_HOUR])
    ticks = RawStore(tmp_path).ticks(*hour_window(FIRST_HOUR), ("SOL-USD", "ETH-USD"), {})
    assert ticks.products == ("SOL-USD", "ETH-USD")
    assert set(ticks.product.tolist()) == {1}


def test_rows_of_two_logs_follow_the_clock_of_reception(tmp_path: Path) -> None:
    first, second = hours_from(FIRST_HOUR, 2)
    write_market(tmp_path, [first], log_id="zzzzzzzz")
    write_market(tmp_path, [second], log_id="aaaaaaaa")
    ticks = RawStore(tmp_path).ticks(hour_window(first)[0], hour_window(second)[1], PRODUCTS, {})
    assert len(ticks) == 4 * 1440
    assert (np.diff(ticks.event_time_ns) >= 0).all()


def test_the_taker_bought_where_the_maker_sold(tmp_path: Path) -> None:
    write_market(tmp_path, [FIRST_HOUR])
    raw = RawStore(tmp_path)
    trades = raw.trades(*hour_window(FIRST_HOUR), PRODUCTS)
    table = raw.reader.read("trades.raw", *hour_window(FIRST_HOUR), ["side"])
    assert trades.buy.tolist() == [side == "SELL" for side in table["side"].to_pylist()]
    assert not trades.is_snapshot.any()


def test_scores_are_read_by_bar_end_without_closing_and_unreadable_records(tmp_path: Path) -> None:
    start_ns, end_ns = hour_window(FIRST_HOUR)
    values = [score(start_ns), b"?", closing(0, start_ns), score(start_ns, 1), score(end_ns)]
    file = OpenFile(tmp_path, SCORES_TOPIC, "abcd1234", 0, 0)
    batch = to_batch(SCORES_TOPIC, 0, 0, values, lambda _: start_ns, None)
    file.append(batch.slice(0, 4), 0)
    file.publish()
    raw = RawStore(tmp_path)
    table = raw.scores(start_ns, end_ns)
    assert table.schema == SCHEMAS[SCORES_TOPIC]
    assert table.select(["kafka_offset", "revision", "flag"]).to_pylist() == [
        {"kafka_offset": 0, "revision": 0, "flag": True},
        {"kafka_offset": 3, "revision": 1, "flag": True},
    ]
    assert raw.reader.count(SCORES_TOPIC, start_ns, end_ns) == 4
    assert raw.scores(end_ns, end_ns + 1).num_rows == 0
    assert (raw.closed_score_hours(), raw.closed_score_hour(FIRST_HOUR)) == ([], None)


def test_who_served_the_connections_is_told(tmp_path: Path) -> None:
    served = [
        {"url": "ws://127.0.0.1:8765", "server": "cryptovol-simulator"},
        {"url": "wss://exchange.example", "server": ""},
        {"url": "wss://exchange.example", "server": ""},
    ]
    events = {
        "kind": ["connected"] * 3 + ["subscribed"],
        "at_ns": [hour_window(FIRST_HOUR)[0] + step for step in range(4)],
        "connection_id": ["a", "b", "c", "c"],
        "event_time_ns": [None] * 4,
        "payload": [json.dumps(detail) for detail in (*served, {"subscriptions": {}})],
    }
    synthetic._publish(tmp_path, EVENTS, 0, 0, events, np.ones(4, dtype=bool), synthetic.LOG_ID)
    assert RawStore(tmp_path).servers() == {"cryptovol-simulator": 1, "wss://exchange.example": 2}


def test_hours_with_ticks_need_not_be_closed(tmp_path: Path) -> None:
    hours = hours_from(FIRST_HOUR, 2)
    write_market(tmp_path, hours, close=False)
    assert RawStore(tmp_path).hours_with_ticks() == hours
    assert RawStore(tmp_path).closed_hours() == []


def test_a_folder_without_anything_is_empty_and_no_error(tmp_path: Path) -> None:
    raw = RawStore(tmp_path / "absent")
    assert len(raw.ticks(*hour_window(FIRST_HOUR), PRODUCTS, {})) == 0
    assert len(raw.trades(*hour_window(FIRST_HOUR), PRODUCTS)) == 0


@given(
    sequence=st.lists(st.integers(0, 60), min_size=1, max_size=30, unique=True).map(sorted),
    products=st.lists(st.integers(0, 2), min_size=30, max_size=30),
    firsts=st.lists(st.integers(0, 60), max_size=6, unique=True).map(sorted),
)
def test_gap_flags_equal_the_obvious_loop(
    sequence: list[int], products: list[int], firsts: list[int]
) -> None:
    products = products[: len(sequence)]
    rows = [{"sequence_num": n, "product": code} for n, code in zip(sequence, products, strict=True)]
    lost = [first for first in firsts if first not in sequence]
    expected, before = [], {}
    for number, code in zip(sequence, products, strict=True):
        previous = before.get(code)
        expected.append(previous is not None and any(previous < first < number for first in lost))
        before[code] = number
    flagged = flag_gaps(ticks_of(rows, ("A", "B", "C")), {"c0": np.array(lost, dtype=np.int64)})
    assert flagged.gap_before.tolist() == expected
