"""Kafka records → columns: nothing invented, nothing dropped."""

from __future__ import annotations

import base64
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster_tests.ingestor.archive.messages import (
    MINUTE_NS,
    QUOTE,
    TEN_NS,
    TRADE,
    closing,
    dead,
    event,
    score,
    tick,
    trade,
)
from ingestor.archive.schema import SCHEMAS, UNREADABLE, to_batch
from ingestor.envelope import DEAD, EVENTS, SCORES_TOPIC, TICKS, TOPICS, TRADES
from ingestor.times import NS

BROKER_NS = 1_800_000_000 * 10**9


def rows(topic: str, *values: bytes | None, previous_time_ns: int | None = None) -> list[dict]:
    return to_batch(topic, 2, 100, values, lambda index: BROKER_NS + index, previous_time_ns).to_pylist()


def test_a_tick_keeps_its_entry_byte_for_byte() -> None:
    (row,) = rows(TICKS, tick(TEN_NS, 7))
    assert row == {
        "kafka_partition": 2,
        "kafka_offset": 100,
        "schema_version": 1,
        "product_id": "BTC-USD",
        "event_time_ns": TEN_NS,
        "received_at_ns": TEN_NS + 5,
        "connection_id": "c1",
        "sequence_num": 7,
        "event_index": 0,
        "entry_index": 0,
        "event_type": "update",
        "price": 67000.01,
        "best_bid": 67000.0,
        "best_ask": 67000.02,
        "best_bid_quantity": 0.5,
        "best_ask_quantity": 1.25,
        "payload": QUOTE.decode(),
    }


@pytest.mark.parametrize("value", [b'"abc"', b'""', b"null", b'"nan"', b'"Infinity"', b"[1]", b"true", b"{}"])
def test_a_field_that_is_no_decimal_is_null_and_its_neighbours_stay(value: bytes) -> None:
    (row,) = rows(TICKS, tick(entry=b'{"price":' + value + b',"best_bid":"5.5"}'))
    assert (row["price"], row["best_bid"], row["best_ask"]) == (None, 5.5, None)


def test_an_entry_that_is_no_object_is_stored_without_quotes() -> None:
    (row,) = rows(TICKS, tick(entry=b"[1,2]"))
    assert (row["payload"], row["price"], row["schema_version"]) == ("[1,2]", None, 1)


def test_a_number_that_no_float_holds_costs_its_own_column_only() -> None:
    (row,) = rows(
        TICKS, tick(entry=b'{"product_id":"BTC-USD","price":1e999,"best_bid":"5","best_ask":1e9999}')
    )
    assert (row["price"], row["best_bid"], row["best_ask"]) == (None, 5.0, None)
    assert (row["schema_version"], row["sequence_num"]) == (1, 0)
    (row,) = rows(TRADES, trade(entry=b'{"trade_id":"7","size":1e999,"price":2}'))
    assert (row["trade_id"], row["size"], row["price"], row["schema_version"]) == ("7", None, 2.0, 1)


def test_a_trade_has_its_own_time_to_the_nanosecond() -> None:
    (row,) = rows(TRADES, trade(TEN_NS))
    assert row["trade_time_ns"] == TEN_NS + 123_456_789
    assert (row["trade_id"], row["price"], row["size"], row["side"]) == ("77", 67000.01, 0.002, "BUY")
    assert row["payload"] == TRADE.decode()


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [("2026-04-04T10:00:00Z", 0), ("2026-04-04T10:00:00.5Z", 500_000_000), ("yesterday", None), ("", None)],
)
def test_trade_times_of_any_precision(text: str, nanoseconds: int | None) -> None:
    first, second = rows(TRADES, trade(entry=b'{"time":"%s"}' % text.encode()), trade())
    assert first["trade_time_ns"] == (None if nanoseconds is None else TEN_NS + nanoseconds)
    assert second["trade_time_ns"] == TEN_NS + 123_456_789


def test_events_and_dead_letters() -> None:
    offsets = {"ticks.raw": {"0": 5}}
    checkpoint, gap = rows(EVENTS, event("checkpoint", 5, "c1", TEN_NS, offsets), event("gap", 6, "c1", None))
    assert (checkpoint["kind"], checkpoint["event_time_ns"]) == ("checkpoint", TEN_NS)
    assert checkpoint["payload"] == '{"offsets":{"ticks.raw":{"0":5}}}'
    assert (gap["event_time_ns"], gap["at_ns"]) == (None, 6)
    (letter,) = rows(DEAD, dead(9))
    assert (letter["reason"], letter["at_ns"], letter["sequence_num"], letter["payload"]) == (
        "not JSON",
        9,
        None,
        "AAEC",
    )


def test_scores_and_closing_records() -> None:
    scored, closed = rows(SCORES_TOPIC, score(TEN_NS), closing(2, TEN_NS + NS))
    assert (scored["product_id"], scored["bar_end_ns"], scored["probability"]) == ("BTC-USD", TEN_NS, 0.75)
    assert (scored["flag"], scored["provisional"], scored["episode"]) == (True, False, None)
    assert scored["payload"] == '[{"feature":"rv_60","value":1.5,"log_odds":0.25}]'
    assert (closed["product_id"], closed["bar_end_ns"], closed["reason"]) == ("#2", TEN_NS + NS, "closed")
    assert (closed["flag"], closed["probability"], closed["payload"]) == (None, None, "[]")


UNREADABLE_VALUES = [
    b"",
    b"\xff\xfe",
    b'{"schema_version":1}',
    None,
    tick().replace(b"BTC-USD", b"\xff\xff"),
    tick(entry=b'{"x":"\xff"}'),
    tick(entry=b"[" * 50_000 + b"]" * 50_000),
    tick().replace(str(TEN_NS).encode(), b"9" * 30),
    tick().replace(b'"event_index":0', b'"event_index":99999'),
]


@pytest.mark.parametrize("topic", [*TOPICS, SCORES_TOPIC])
@pytest.mark.parametrize("value", UNREADABLE_VALUES)
def test_what_cannot_be_read_is_stored_as_it_came(topic: str, value: bytes | None) -> None:
    (row,) = rows(topic, value)
    assert row["schema_version"] == UNREADABLE
    assert row["payload"] == (None if value is None else base64.b64encode(value).decode())
    assert (row["kafka_partition"], row["kafka_offset"]) == (2, 100)


def test_an_unreadable_record_takes_the_time_of_the_one_before_it() -> None:
    later = TEN_NS + MINUTE_NS
    times = [row["event_time_ns"] for row in rows(TICKS, b"?", tick(TEN_NS), b"?", tick(later), b"?", b"?")]
    assert times == [BROKER_NS, TEN_NS, TEN_NS, later, later, later]
    assert rows(TICKS, b"?", previous_time_ns=TEN_NS)[0]["event_time_ns"] == TEN_NS


@settings(deadline=None)
@given(st.lists(st.one_of(st.just(None), st.binary(max_size=8), st.integers(0, 2**40).map(tick)), min_size=1))
def test_a_batch_is_its_records_one_by_one(values: list[bytes | None]) -> None:
    together = to_batch(TICKS, 0, 5, values, lambda index: BROKER_NS, None)
    assert together.schema == SCHEMAS[TICKS]
    previous: int | None = None
    for index, row in enumerate(together.to_pylist()):
        alone = to_batch(TICKS, 0, 5 + index, [values[index]], lambda _: BROKER_NS, previous)
        assert row == alone.to_pylist()[0]
        previous = row["event_time_ns"]


def test_storing_does_not_import_pandas() -> None:
    """It would cost the recorder a second of start and tens of megabytes."""
    code = (
        "import sys, tempfile, pathlib\n"
        "from cryptovol_dagster_tests.ingestor.archive.messages import tick\n"
        "from ingestor.archive.schema import to_batch\n"
        "from ingestor.archive.writer import OpenFile\n"
        "file = OpenFile(pathlib.Path(tempfile.mkdtemp()), 'ticks.raw', 'abcd1234', 0, 0)\n"
        "batch = to_batch('ticks.raw', 0, 0, [tick(), tick(1)], lambda i: 0, None)\n"
        "file.append(batch.slice(0, file.fitting(batch)), 0)\n"
        "file.publish()\n"
        "print('pandas' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
