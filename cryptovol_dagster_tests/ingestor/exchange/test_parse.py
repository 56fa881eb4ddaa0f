"""A literal for every kind of message, what must be refused, and the real recordings."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.exchange import messages as wire
from ingestor.exchange.clock import rfc3339_to_ns
from ingestor.exchange.parse import FrameError, parse_frame, product_of, read_entry
from ingestor.exchange.sequence import SequenceTracker, Verdict

TIME = "2026-05-01T10:00:00.123456789Z"

TICKER_ENTRY = (
    '{"type":"ticker","product_id":"BTC-USD","price":"64000.1","volume_24_h":"10.5","low_24_h":"63000",'
    '"high_24_h":"65000","low_52_w":"50000","high_52_w":"110000","price_percent_chg_24_h":"-0.5",'
    '"best_bid":"64000","best_ask":"64000.01","best_bid_quantity":"0.5","best_ask_quantity":"0.25",'
    '"of_tomorrow":{"a":[1,2]}}'
)
TRADE_ENTRY = (
    '{"trade_id":"77","product_id":"ETH-USD","price":"3000.5","size":"0.2","side":"BUY",'
    '"time":"2026-05-01T09:59:59.9Z"}'
)


def frame(channel: str, events: str, sequence_num: int = 7, more: str = "") -> str:
    return (
        f'{{"channel":"{channel}",{more}"timestamp":"{TIME}",'
        f'"sequence_num":{sequence_num},"events":{events}}}'
    )


FRAMES = {
    wire.TICKER: frame(wire.TICKER, f'[{{"type":"snapshot","tickers":[{TICKER_ENTRY},{TICKER_ENTRY}]}}]'),
    wire.HEARTBEATS: frame(
        wire.HEARTBEATS,
        '[{"current_time":"2026-05-01 10:00:00.1 +0000 UTC m=+41.5","heartbeat_counter":41691}]',
    ),
    wire.TRADES: frame(wire.TRADES, f'[{{"type":"update","trades":[{TRADE_ENTRY}]}}]'),
    wire.BOOK: frame(
        wire.BOOK,
        '[{"type":"update","product_id":"BTC-USD","updates":[{"side":"bid","event_time":"2026-05-01T10:00:00Z",'
        '"price_level":"63999","new_quantity":"0"}]}]',
    ),
    wire.CANDLES: frame(
        wire.CANDLES,
        '[{"type":"snapshot","candles":[{"start":"1777629600","high":"2","low":"1","open":"1","close":"2",'
        '"volume":"3.5","product_id":"BTC-USD"}]}]',
    ),
    wire.SUBSCRIPTIONS: frame(wire.SUBSCRIPTIONS, '[{"subscriptions":{"ticker":["BTC-USD","ETH-USD"]}}]'),
}


@pytest.mark.parametrize("channel", FRAMES)
@pytest.mark.parametrize("as_bytes", [True, False])
def test_every_channel_is_read(channel: str, as_bytes: bool) -> None:
    text = FRAMES[channel]
    parsed = parse_frame(text.encode() if as_bytes else text)
    assert (parsed.channel, parsed.sequence_num, parsed.known) == (channel, 7, True)
    assert parsed.event_time_ns == rfc3339_to_ns(TIME)
    assert len(parsed.events) == 1


def test_a_ticker_entry_stays_byte_for_byte() -> None:
    event = parse_frame(FRAMES[wire.TICKER]).events[0]
    assert isinstance(event, wire.TickerEvent)
    assert event.type == "snapshot"
    assert [bytes(entry).decode() for entry in event.tickers] == [TICKER_ENTRY, TICKER_ENTRY]
    assert read_entry(wire.TICKER, event.tickers[0]) == ("BTC-USD", ("ticker: unknown field 'of_tomorrow'",))


def test_a_trade_stays_byte_for_byte() -> None:
    event = parse_frame(FRAMES[wire.TRADES]).events[0]
    assert isinstance(event, wire.TradesEvent)
    assert bytes(event.trades[0]).decode() == TRADE_ENTRY
    assert read_entry(wire.TRADES, event.trades[0]) == ("ETH-USD", ())


@pytest.mark.parametrize("counter", ["41691", '"41691"'])
@pytest.mark.parametrize(
    "current_time", ['"2026-05-01T10:00:00Z"', '"2026-05-01 10:00:00 m=+4"', "1777629600"]
)
def test_heartbeats_of_every_format(counter: str, current_time: str) -> None:
    events = f'[{{"current_time":{current_time},"heartbeat_counter":{counter}}}]'
    event = parse_frame(frame(wire.HEARTBEATS, events)).events[0]
    assert isinstance(event, wire.HeartbeatEvent)
    assert event.counter == 41691


def test_the_documented_client_id_is_let_pass() -> None:
    events = f'[{{"type":"update","trades":[{TRADE_ENTRY}]}}]'
    assert parse_frame(frame(wire.TRADES, events, more='"client_id":"",')) == parse_frame(FRAMES[wire.TRADES])


def test_subscriptions_and_error() -> None:
    event = parse_frame(FRAMES[wire.SUBSCRIPTIONS]).events[0]
    assert isinstance(event, wire.SubscriptionsEvent)
    assert event.subscriptions == {"ticker": ["BTC-USD", "ETH-USD"]}
    error = parse_frame('{"type":"error","message":"authentication failure"}')
    assert (error.channel, error.message, error.sequence_num) == (wire.ERROR, "authentication failure", -1)
    assert parse_frame('{"type":"error"}').message == "(no message)"
    assert parse_frame('{"type":"error","message":{"code":4}}').message == '{"code":4}'
    assert parse_frame('{"type":"error","message":1e999}').message == "1e999"
    assert parse_frame('{"type":"error","message":"\\u001b[2J"}').message == "\\x1b[2J"


def test_an_unknown_channel_keeps_its_number_and_time() -> None:
    parsed = parse_frame(frame("status", '{"anything":[1,2,{"type":5}]}', sequence_num=12))
    assert (parsed.channel, parsed.sequence_num, parsed.known, parsed.events) == ("status", 12, False, ())
    assert parsed.event_time_ns == rfc3339_to_ns(TIME)


@pytest.mark.parametrize(
    ("data", "reason", "sequence_num"),
    [
        (b"", "not a frame", None),
        (b"hello", "not a frame", None),
        (b"[1,2]", "not a frame", None),
        (b"{}", "no channel", None),
        (b'{"type":"subscribe","channel":5}', "not a frame", None),
        (b'\xff\xfe{"channel":"ticker"}', "not UTF-8", None),
        (
            frame(wire.TICKER, "[]").replace("ticker", "tick\udcffer").encode("utf-8", "surrogateescape"),
            "UTF-8",
            None,
        ),
        (b'{"channel":"ticker","timestamp":"2026-05-01T10:00:00Z","events":[]}', "no sequence_num", None),
        (frame(wire.TICKER, "[]", sequence_num=-1).encode(), "not a frame", None),
        (frame(wire.TICKER, "[]").replace(TIME, "10 o'clock").encode(), "RFC 3339", 7),
        (b'{"channel":"ticker","sequence_num":7,"events":[]}', "no timestamp", 7),
        (f'{{"channel":"ticker","timestamp":"{TIME}","sequence_num":7}}'.encode(), "no events", 7),
        (frame(wire.TICKER, "5").encode(), "events", 7),
        (frame(wire.TICKER, '[{"type":"update"}]').encode(), "events", 7),
        (frame(wire.HEARTBEATS, "5").encode(), "events", 7),
        (b"\xef\xbb\xbf" + frame(wire.HEARTBEATS, "[]").encode(), "not a frame", None),
        (frame(wire.TICKER, "[]", more='"x":"\\ud800",').encode(), "not a frame", None),
        (frame(wire.TICKER, "[NaN]").encode(), "not a frame", None),
        (frame(wire.TICKER, "[]", sequence_num=10**30).encode(), "not a frame", None),
        (b'{"channel":"\\u001b[2J","sequence_num":7}', r"\x1b[2J: no timestamp", 7),
        (frame(wire.TICKER, "[" * 50_000 + "]" * 50_000).encode(), "recursion", None),
    ],
)
def test_what_is_no_frame_says_why(data: bytes, reason: str, sequence_num: int | None) -> None:
    with pytest.raises(FrameError) as caught:
        parse_frame(data)
    assert reason in caught.value.reason
    assert "\n" not in caught.value.reason
    assert caught.value.sequence_num == sequence_num


@pytest.mark.parametrize("entry", [b"5", b"{}", b'{"product_id":""}', b'{"product_id":null}', b'"BTC-USD"'])
def test_an_entry_without_product_says_so(entry: bytes) -> None:
    with pytest.raises(FrameError, match="entry"):
        product_of(msgspec.Raw(entry))
    with pytest.raises(FrameError, match="entry"):
        read_entry(wire.TICKER, msgspec.Raw(entry))


def outcome(data: bytes) -> str:
    """The frame's channel, or why there is none; any other exception is a fault."""
    try:
        return repr(parse_frame(data).channel)
    except FrameError as error:
        return error.reason


@given(st.binary(max_size=300))
def test_no_bytes_do_worse_than_a_frame_error(data: bytes) -> None:
    assert outcome(data)


@given(st.data())
def test_no_cut_or_changed_frame_does_worse_than_a_frame_error(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from([text.encode() for text in FRAMES.values()])))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    assert outcome(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


def test_twenty_verbatim_minutes_are_gapless(recordings: Path) -> None:
    tracker, channels, products = SequenceTracker(), Counter[str](), Counter[str]()
    with gzip.open(recordings / "btc_2026-04-05_20min_verbatim.ndjson.gz", "rt") as lines:
        for line in lines:
            parsed = parse_frame(json.dumps(json.loads(line)["frame"]))
            assert tracker.observe(parsed.sequence_num) is Verdict.OK
            assert parsed.drift == ()
            channels[parsed.channel] += 1
            for event in parsed.events:
                if isinstance(event, wire.TickerEvent):
                    for product_id, drift in (read_entry(wire.TICKER, entry) for entry in event.tickers):
                        products[product_id] += 1
                        assert drift == ()
    assert tracker.newest == 5970
    assert channels == {wire.TICKER: 5970, wire.SUBSCRIPTIONS: 1}
    assert products == {"BTC-USD": 5970}


def test_a_session_of_all_channels_is_gapless(recordings: Path) -> None:
    tracker, channels = SequenceTracker(), Counter[str]()
    trades = 0
    with gzip.open(recordings / "multichannel_2026-08-09_25s_session.jsonl.gz", "rt") as lines:
        for line in lines:
            record = json.loads(line)
            if record["t"] != "recv":
                continue
            parsed = parse_frame(record["data"])
            assert (parsed.known, parsed.drift) == (True, ())
            assert tracker.observe(parsed.sequence_num) is Verdict.OK
            channels[parsed.channel] += 1
            for event in parsed.events:
                if isinstance(event, wire.TradesEvent):
                    trades += len(event.trades)
                    assert all(read_entry(wire.TRADES, trade)[1] == () for trade in event.trades)
    assert tracker.newest == 1029
    assert channels == {
        wire.BOOK: 775,
        wire.TICKER: 160,
        wire.TRADES: 59,
        wire.HEARTBEATS: 25,
        wire.CANDLES: 6,
        wire.SUBSCRIPTIONS: 5,
    }
    assert trades == 279
