"""What differs from the documented protocol is named, and what can be used of it is kept."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cryptovol_dagster_tests.ingestor.exchange.test_parse import FRAMES
from ingestor.exchange import messages as wire
from ingestor.exchange.parse import parse_frame, read_entry
from ingestor.exchange.reasons import entry_place, entry_reason, printable, quoted, reason_class

#: The entries of FRAMES without the field that test_parse adds.
TICKER: dict[str, Any] = json.loads(FRAMES[wire.TICKER])["events"][0]["tickers"][0]
TICKER.pop("of_tomorrow")
TRADE: dict[str, Any] = json.loads(FRAMES[wire.TRADES])["events"][0]["trades"][0]
ENTRIES = {wire.TICKER: TICKER, wire.TRADES: TRADE}


def judged(channel: str, entry: dict[str, Any]) -> tuple[str, ...]:
    product_id, drift = read_entry(channel, msgspec.Raw(json.dumps(entry)))
    assert product_id == entry["product_id"]
    return drift


def read_changed(channel: str, change: str, value: Any = None, *, level: str = "frame") -> wire.Frame:
    """A frame of `channel` in which the field `change` was set, or removed where no value is given."""
    content = json.loads(FRAMES[channel])
    part = content if level == "frame" else content["events"][0]
    if value is None:
        del part[change]
    else:
        part[change] = value
    return parse_frame(json.dumps(content))


@pytest.mark.parametrize("channel", ENTRIES)
def test_a_documented_entry_is_no_drift_whatever_its_order(channel: str) -> None:
    assert judged(channel, ENTRIES[channel]) == ()
    assert judged(channel, dict(reversed(ENTRIES[channel].items()))) == ()


@pytest.mark.parametrize(
    ("channel", "change", "name"),
    [
        (wire.TICKER, {"foo": 1}, "ticker: unknown field 'foo'"),
        (wire.TICKER, {"best_bid": ...}, "ticker: missing field 'best_bid'"),
        (wire.TICKER, {"type": "ticker_batch"}, "ticker: field 'type' is 'ticker_batch', not ticker"),
        (wire.TICKER, {"price": None}, "ticker: field 'price' is null, not text"),
        (wire.TRADES, {"size": 0.2}, "market_trades: field 'size' is a number, not text"),
        (wire.TRADES, {"time": ["x"]}, "market_trades: field 'time' is an array, not text"),
        (wire.TRADES, {"trade_id": {}}, "market_trades: field 'trade_id' is an object, not text"),
        (wire.TRADES, {"price": True}, "market_trades: field 'price' is true or false, not text"),
        (wire.TRADES, {"side": "HOLD"}, "market_trades: field 'side' is 'HOLD', not BUY or SELL"),
        (wire.TRADES, {"a\x1b\n'": "x"}, r"""market_trades: unknown field 'a\x1b\n''"""),
        (wire.TRADES, {"y" * 5_000: "x"}, f"market_trades: unknown field '{'y' * 64}…'"),
    ],
)
def test_a_changed_entry_is_named_and_keeps_its_product(
    channel: str, change: dict[str, Any], name: str
) -> None:
    changed = {field: value for field, value in (ENTRIES[channel] | change).items() if value is not ...}
    assert judged(channel, changed) == (name,)


def test_every_change_of_an_entry_is_named() -> None:
    changed = TICKER | {"price": 1, "of_tomorrow": [[1]]}
    del changed["low_52_w"]
    assert set(judged(wire.TICKER, changed)) == {
        "ticker: unknown field 'of_tomorrow'",
        "ticker: missing field 'low_52_w'",
        "ticker: field 'price' is a number, not text",
    }


def test_numbers_that_no_machine_holds_are_numbers() -> None:
    entry = json.dumps(TICKER)[:-1] + f',"huge":1e999,"long":{"9" * 500}}}'
    assert read_entry(wire.TICKER, msgspec.Raw(entry))[1] == (
        "ticker: unknown field 'huge'",
        "ticker: unknown field 'long'",
    )


@pytest.mark.parametrize("channel", FRAMES)
def test_changes_of_the_frame_and_its_events_are_told_apart(channel: str) -> None:
    frame = read_changed(channel, "foo", 1)
    assert frame.drift == (f"{channel}: unknown field 'foo' of the frame",)
    assert frame.events
    frame = read_changed(channel, "foo", 1, level="event")
    assert frame.drift == (f"{channel}: unknown field 'foo' of the event",)
    assert (frame.channel, frame.sequence_num) == (channel, 7)


@pytest.mark.parametrize(
    ("channel", "field", "value", "name"),
    [
        (wire.TICKER, "type", "refresh", "field 'type' of the event is 'refresh', not snapshot or update"),
        (wire.HEARTBEATS, "heartbeat_counter", [1], "is an array, not a number or text"),
        (wire.HEARTBEATS, "current_time", None, "missing field 'current_time' of the event"),
        (wire.SUBSCRIPTIONS, "subscriptions", ["ticker"], "is an array, not an object"),
        (wire.SUBSCRIPTIONS, "subscriptions", {"ticker": [5]}, "subscriptions: an event of another shape"),
        (wire.BOOK, "updates", None, "l2_data: missing field 'updates' of the event"),
        (wire.CANDLES, "candles", [{}], "candles: missing field 'start'"),
        (wire.CANDLES, "candles", [5], "candles: entry is a number, not an object"),
    ],
)
def test_a_frame_that_is_only_counted_survives_any_content(
    channel: str, field: str, value: Any, name: str
) -> None:
    frame = read_changed(channel, field, value, level="event")
    assert any(name in found for found in frame.drift), frame.drift
    assert frame.known


def test_updates_of_the_book_are_checked_in_every_sixteenth_frame() -> None:
    content = json.loads(FRAMES[wire.BOOK])
    content["events"][0]["updates"][0]["price_level"] = 1
    found = []
    for number in range(64):
        content["sequence_num"] = number
        found += [(number, name) for name in parse_frame(json.dumps(content)).drift]
    name = "l2_data: field 'price_level' is a number, not text"
    assert found == [(0, name), (16, name), (32, name), (48, name)]


def test_client_id_is_documented_and_its_type_checked() -> None:
    assert read_changed(wire.TICKER, "client_id", "me").drift == ()
    assert read_changed(wire.TICKER, "client_id", 5).drift == (
        "ticker: field 'client_id' of the frame is a number, not text",
    )


def test_an_unknown_channel_is_not_judged() -> None:
    frame = parse_frame(FRAMES[wire.TICKER].replace('"ticker"', '"status"', 1).replace("{", '{"foo":1,', 1))
    assert (frame.known, frame.drift) == (False, ())


@pytest.mark.parametrize(
    ("reason", "its_class"),
    [
        (
            "not a frame: JSON is malformed: invalid character (byte 17)",
            "not a frame: JSON is malformed: invalid character (byte N)",
        ),
        (
            "ticker: timestamp: not an RFC 3339 time: '10 o\\'clock'",
            "ticker: timestamp: not an RFC 3339 time: '…'",
        ),
        (
            "l2_data: timestamp is 7200.123 s ahead of the receiving clock (first 600000 of 1000000 bytes)",
            "l2_data: timestamp is N s ahead of the receiving clock",
        ),
        (
            "ticker: events: Expected `str`, got `int` - at `$[3].type`",
            "ticker: events: Expected `str`, got `int` - at `$[N].type`",
        ),
        (entry_reason("ticker", 0, 12, "1000000 bytes are more"), "ticker: an entry: N bytes are more"),
    ],
)
def test_a_class_holds_what_is_alike(reason: str, its_class: str) -> None:
    assert reason_class(reason) == its_class
    assert reason_class(its_class) == its_class


def test_a_letter_of_one_entry_is_known_by_its_reason() -> None:
    reason = entry_reason("market_trades", 1, 2, "x: event 3, entry 4: ")
    assert entry_place(reason) == ("market_trades", 1, 2)
    assert entry_place("ticker: events: Expected `array`") is None


def test_nothing_that_a_terminal_acts_on_is_printed() -> None:
    assert printable("a\x1b[2J\n\ud800é中") == "a\\x1b[2J\\n\\ud800é中"
    assert quoted("it's") == '"it\'s"'
