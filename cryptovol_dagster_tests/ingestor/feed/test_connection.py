"""What becomes of the frames of one connection."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptovol_dagster_tests.ingestor.feed.support import NS, T0_NS, RememberingPublisher, entry, frame, trade
from ingestor.envelope import DEAD, EVENTS, TICKS, TRADES
from ingestor.feed.connection import Connection, SequenceBrokenError
from ingestor.feed.counters import FeedCounters

CONNECTION = "c0ffee"
FUTURE_LIMIT_NS = 300 * NS


class Rig:
    """A connection, what it publishes, and what it counts."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.out = RememberingPublisher(at_once=at_once)
        self.counters = FeedCounters()
        self.connection = Connection(CONNECTION, self.out, self.counters, FUTURE_LIMIT_NS)

    def take(self, *frames: str | bytes, received_at_ns: int | None = None) -> None:
        for each in frames:
            data = each.encode() if isinstance(each, str) else each
            self.connection.on_frame(data, time.time_ns() if received_at_ns is None else received_at_ns)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_every_entry_of_a_ticker_frame_becomes_a_message(rig: Rig) -> None:
    events = [
        {"type": "snapshot", "tickers": [entry("BTC-USD"), entry("ETH-USD")]},
        {"type": "update", "tickers": [entry("SOL-USD")]},
    ]
    rig.take(frame(0, events=events), received_at_ns=T0_NS + 5)
    assert [
        (tick.product_id, tick.event_index, tick.entry_index, tick.event_type) for tick in rig.out.ticks
    ] == [("BTC-USD", 0, 0, "snapshot"), ("ETH-USD", 0, 1, "snapshot"), ("SOL-USD", 1, 0, "update")]
    tick = rig.out.ticks[0]
    assert (tick.sequence_num, tick.event_time_ns, tick.received_at_ns) == (0, T0_NS, T0_NS + 5)
    assert tick.connection_id == CONNECTION
    assert [key for _, key, _ in rig.out.messages] == [b"BTC-USD", b"ETH-USD", b"SOL-USD"]
    # Byte for byte inside the message.
    assert msgspec.json.encode(entry("BTC-USD")) in rig.out.raw[0]
    assert (rig.counters.ticks, rig.counters.drift) == (3, {})


def test_trades_are_published_snapshots_included(rig: Rig) -> None:
    trades = [trade("ETH-USD"), trade("BTC-USD")]
    rig.take(frame(0, "market_trades", events=[{"type": "snapshot", "trades": trades}]))
    assert [(t.product_id, t.entry_index, t.event_type) for t in rig.out.trades] == [
        ("ETH-USD", 0, "snapshot"),
        ("BTC-USD", 1, "snapshot"),
    ]
    assert rig.counters.trades == 2


def test_a_gap_is_told_before_the_frame_that_shows_it(rig: Rig) -> None:
    rig.take(frame(0), frame(1, "heartbeats"), frame(5), frame(6))
    topics = [name for name, _, _ in rig.out.messages]
    assert topics == [TICKS, EVENTS, TICKS, TICKS]
    gap = rig.out.events("gap")[0]
    assert gap.detail == {"from_sequence": 2, "to_sequence": 4, "count": 3}
    assert gap.event_time_ns == T0_NS + 5 * NS // 10
    assert (rig.counters.gaps, rig.counters.missing) == (1, 3)


def test_a_lost_heartbeat_is_a_gap_too(rig: Rig) -> None:
    rig.take(frame(0), frame(2, "heartbeats"))
    assert rig.out.events("gap")[0].detail["count"] == 1


def test_a_repeat_is_counted_and_not_published_again(rig: Rig) -> None:
    rig.take(frame(0), frame(1), frame(1), frame(0), frame(2))
    assert [tick.sequence_num for tick in rig.out.ticks] == [0, 1, 2]
    assert (rig.counters.repeats, rig.counters.gaps) == (2, 0)


def test_numbers_that_begin_again_end_the_connection(rig: Rig) -> None:
    rig.take(*(frame(n) for n in range(300)))
    with pytest.raises(SequenceBrokenError, match="299"):
        rig.take(*(frame(n) for n in range(300)))
    assert rig.out.events("protocol_drift")[0].detail["newest"] == 299


@pytest.mark.parametrize("data", [b"no json", b'\xff\xfe{"a":1}', b"<html></html>"])
def test_unreadable_bytes_are_kept(rig: Rig, data: bytes) -> None:
    rig.take(data)
    letter = rig.out.dead[0]
    assert base64.b64decode(letter.data_base64) == data
    assert letter.sequence_num is None
    assert letter.reason
    assert rig.counters.dead_letters == 1


def test_a_frame_whose_events_are_unreadable_keeps_its_number(rig: Rig) -> None:
    bad = frame(1, events=5)
    rig.take(frame(0), bad, frame(2))
    assert rig.out.dead[0].sequence_num == 1
    assert base64.b64decode(rig.out.dead[0].data_base64).decode() == bad
    assert rig.counters.gaps == 0


def test_one_bad_entry_does_not_cost_the_others(rig: Rig) -> None:
    entries = [entry("BTC-USD"), {"price": "1"}, 5, entry("ETH-USD")]
    rig.take(frame(0, events=[{"type": "update", "tickers": entries}]))
    assert [(tick.product_id, tick.entry_index) for tick in rig.out.ticks] == [("BTC-USD", 0), ("ETH-USD", 3)]
    assert [base64.b64decode(letter.data_base64) for letter in rig.out.dead] == [b'{"price":"1"}', b"5"]
    assert all(letter.sequence_num == 0 for letter in rig.out.dead)


def test_a_giant_entry_is_cut_into_a_dead_letter(rig: Rig) -> None:
    entries = [entry("BTC-USD") | {"padding": "x" * 1_000_000}, entry("ETH-USD")]
    rig.take(frame(0, events=[{"type": "update", "tickers": entries}]))
    assert [tick.product_id for tick in rig.out.ticks] == ["ETH-USD"]
    assert "of 1000" in rig.out.dead[0].reason
    assert max(len(value) for value in rig.out.raw) < 1_000_000


@pytest.mark.parametrize(
    "giant",
    [
        lambda text: frame(0, timestamp=text),
        lambda text: frame(0, text),
        lambda text: msgspec.json.encode({"channel": text, "sequence_num": 0}),
        lambda text: msgspec.json.encode({"type": "error", "message": text}),
        lambda text: msgspec.json.encode({"type": "error", "message": {"text": text}}),
        lambda text: frame(0, "subscriptions", events=[{"subscriptions": {"ticker": [text]}}]),
        lambda text: frame(0, events=[{"type": text, "tickers": [entry()]}]),
        lambda text: frame(0, events=[{"type": "update", "tickers": [entry(text)]}]),
    ],
)
def test_no_giant_text_makes_a_message_that_a_broker_refuses(
    rig: Rig, giant: Callable[[str], str | bytes]
) -> None:
    rig.take(giant("x" * 3_000_000))
    rig.connection.disconnected({"detail": rig.connection.last_error})
    assert len(rig.out.raw) >= 2
    assert max(len(value) for value in rig.out.raw) < 1_000_000


def test_a_server_of_countless_channels_does_not_fill_memory_or_a_checkpoint(rig: Rig) -> None:
    rig.take(*[frame(number, f"channel {number}") for number in range(5_000)])
    rig.connection.checkpoint()
    assert len(rig.counters.unknown_channels) == 101
    counted = rig.out.events("checkpoint")[0].detail["frames"]
    assert (len(counted), sum(counted.values())) == (101, 5_000)


def test_places_beyond_raw_storage_are_dead_letters(rig: Rig) -> None:
    entries = [{"product_id": "A"}] * (2**15 + 1)
    rig.take(frame(0, events=[{"type": "update", "tickers": entries}]))
    assert len(rig.out.ticks) == 2**15
    assert len(rig.out.dead) == 1


def test_a_frame_of_the_future_opens_no_hour(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.take(frame(0), received_at_ns=T0_NS)
    rig.take(frame(1, timestamp="2026-05-01T10:20:00Z"), frame(2), received_at_ns=T0_NS)
    assert [tick.sequence_num for tick in rig.out.ticks] == [0, 2]
    assert "ahead of the receiving clock" in rig.out.dead[0].reason
    assert rig.connection.event_time_ns == T0_NS + 2 * NS // 10
    assert rig.counters.gaps == 0
    assert rig.out.events("clock_skew")[0].detail == {"exchange_ahead_ms": 1_200_000}
    assert "1200.0 s ahead of this machine's clock" in caplog.text


def test_the_limit_of_the_future_itself_is_still_in_time(rig: Rig) -> None:
    rig.take(frame(0), received_at_ns=T0_NS - FUTURE_LIMIT_NS)
    rig.take(frame(1, timestamp="2026-05-01T10:00:00Z"), received_at_ns=T0_NS - FUTURE_LIMIT_NS - 1)
    assert [tick.sequence_num for tick in rig.out.ticks] == [0]


def test_a_receiving_clock_that_steps_loses_nothing(rig: Rig) -> None:
    """Back by hours: dead letters until it is right again, each whole; forward by hours: late is no fault."""
    numbers = iter(range(40))
    for clock_error_ns in (0, -5 * 3_600 * NS, 0, 5 * 3_600 * NS):
        for number in [next(numbers) for _ in range(10)]:
            rig.take(frame(number), received_at_ns=T0_NS + number * NS // 10 + clock_error_ns)
    rig.connection.checkpoint()
    assert [tick.sequence_num for tick in rig.out.ticks] == [*range(10), *range(20, 40)]
    assert [base64.b64decode(letter.data_base64).decode() for letter in rig.out.dead] == [
        frame(number) for number in range(10, 20)
    ]
    assert [letter.sequence_num for letter in rig.out.dead] == [*range(10, 20)]
    assert rig.counters.dead_reasons == {"ticker: timestamp is N s ahead of the receiving clock": 10}
    detail = rig.out.events("checkpoint")[0].detail
    assert (detail["frames"], detail["dead_frames"], detail["missing"]) == ({"ticker": 30}, 10, 0)
    assert len(rig.out.events("clock_skew")) == 1
    assert rig.counters.lag_ms == 5 * 3_600_000


def test_an_error_of_any_shape_is_counted_and_safe_to_print(rig: Rig) -> None:
    for message in ("1e999", "[[[[]]]]", '"\\u001b[2Jgone"', "9" * 500, '{"\\u0000":1}'):
        rig.take(f'{{"type":"error","message":{message}}}')
        assert rig.connection.last_error.isprintable()
    assert (rig.counters.errors, rig.counters.dead_letters) == (5, 0)


def test_ordinary_skew_is_not_worth_an_event(rig: Rig) -> None:
    rig.take(frame(0), received_at_ns=T0_NS - 60_000_000)
    assert rig.out.events() == []
    assert rig.counters.lag_ms == -60.0


def test_old_recordings_are_as_good_as_live(rig: Rig) -> None:
    rig.take(frame(0), received_at_ns=T0_NS + 365 * 86_400 * NS)
    assert len(rig.out.ticks) == 1
    assert rig.out.events() == []


def test_unknown_channels_and_errors_are_drift_told_once_and_counted(rig: Rig) -> None:
    rig.take(
        frame(0, "status"),
        frame(1, "status"),
        '{"type":"error","message":"authentication failure"}',
        frame(2),
    )
    assert [event.detail for event in rig.out.events("protocol_drift")] == [
        {"unknown_channel": "status"},
        {"error": "authentication failure"},
    ]
    assert rig.counters.unknown_channels == {"status": 2}
    assert (rig.counters.errors, rig.counters.gaps) == (1, 0)
    assert len(rig.out.ticks) == 1


def test_a_server_that_only_errs_does_not_fill_the_topic(rig: Rig) -> None:
    rig.take(*['{"type":"error","message":"slow down"}'] * 500)
    assert len(rig.out.events("protocol_drift")) == 20
    assert rig.counters.errors == 500


def test_drift_is_told_once_a_connection_and_counted_in_each_checkpoint(rig: Rig) -> None:
    changed = entry() | {"of_tomorrow": [1], "price": 5}
    drifted = [{"type": "update", "tickers": [changed, changed]}]
    names = ["ticker: unknown field 'of_tomorrow'", "ticker: field 'price' is a number, not text"]
    rig.take(frame(0), frame(1, events=drifted))
    rig.connection.checkpoint()
    rig.take(frame(2, events=drifted), frame(3, foo=1))
    rig.connection.checkpoint()
    rig.take(frame(4))
    rig.connection.checkpoint()
    # Kept byte for byte, the field nobody knows included.
    assert [tick.sequence_num for tick in rig.out.ticks] == [0, 1, 1, 2, 2, 3, 4]
    assert bytes(rig.out.ticks[1].ticker) == msgspec.json.encode(changed)
    assert [event.detail for event in rig.out.events("protocol_drift")] == [
        {"drift": names[0], "sequence_num": 1},
        {"drift": names[1], "sequence_num": 1},
        {"drift": "ticker: unknown field 'foo' of the frame", "sequence_num": 3},
    ]
    first, second, third = [event.detail for event in rig.out.events("checkpoint")]
    assert first["drift"] == dict.fromkeys(names, 2)
    assert second["drift"] == dict.fromkeys(names, 2) | {"ticker: unknown field 'foo' of the frame": 1}
    assert "drift" not in third
    assert rig.counters.as_dict()["drift"][names[0]] == 4
    # Another connection of the same feed tells it again.
    other = Connection("c1", rig.out, rig.counters, FUTURE_LIMIT_NS)
    other.on_frame(frame(0, foo=1).encode(), time.time_ns())
    assert rig.out.events("protocol_drift")[-1].connection_id == "c1"


def test_countless_unknown_fields_do_not_fill_memory_or_a_checkpoint(rig: Rig) -> None:
    for number in range(300):
        rig.take(frame(number, **{f"field {number} {'x' * 500}": 1}))
    rig.connection.checkpoint()
    drift = rig.out.events("checkpoint")[0].detail["drift"]
    assert (len(drift), sum(drift.values()), drift["(others)"]) == (101, 300, 200)
    assert drift == rig.counters.drift
    assert max(map(len, drift)) < 150
    assert len(rig.out.events("protocol_drift")) == 20


def test_dead_letters_are_counted_by_the_class_of_their_reason(rig: Rig) -> None:
    bad = [entry() | {"product_id": None}, entry() | {"product_id": ""}, 5]
    rig.take(
        b"no json", b"not json", frame(0, events=[{"type": "update", "tickers": bad}]), frame(1, events=5)
    )
    assert sum(rig.counters.dead_reasons.values()) == rig.counters.dead_letters == 6
    assert set(rig.counters.as_dict()["dead_reasons"].values()) == {1, 2}
    assert any(reason.startswith("ticker: an entry: ") for reason in rig.counters.dead_reasons)


def test_acknowledged_subscriptions_are_told(rig: Rig) -> None:
    rig.take(frame(0), frame(1, "subscriptions"))
    assert rig.out.events("subscribed")[0].detail == {"subscriptions": {"ticker": ["BTC-USD"]}}


def test_a_checkpoint_waits_for_the_acknowledgement() -> None:
    rig = Rig(at_once=False)
    rig.take(frame(0), frame(1, "heartbeats"), frame(4))
    rig.connection.checkpoint()
    rig.take(frame(5))
    assert rig.out.events("checkpoint") == []
    rig.out.acknowledge()
    checkpoint = rig.out.events("checkpoint")[0]
    assert checkpoint.detail == {
        "from_sequence": 0,
        "to_sequence": 4,
        "frames": {"ticker": 2, "heartbeats": 1},
        "empty_frames": 0,
        "dead_frames": 0,
        "missing": 2,
        "repeats": 0,
        "offsets": {TICKS: {"0": 2}},
        "logs": {TICKS: "abcd1234"},
    }
    # The time of what it covers, not of what came since.
    assert checkpoint.event_time_ns == T0_NS + 4 * NS // 10


def test_no_checkpoint_without_frames(rig: Rig) -> None:
    rig.connection.checkpoint()
    rig.take(frame(0))
    rig.connection.checkpoint()
    rig.connection.checkpoint()
    assert len(rig.out.events("checkpoint")) == 1


def test_the_end_comes_last_behind_the_final_checkpoint() -> None:
    rig = Rig(at_once=False)
    rig.take(frame(0), frame(1))
    rig.connection.checkpoint()
    rig.take(frame(2))
    rig.connection.disconnected({"reason": "lost"})
    assert rig.out.kinds == []
    rig.out.acknowledge()
    assert rig.out.kinds == ["checkpoint", "checkpoint", "disconnected"]
    assert [event.detail.get("to_sequence") for event in rig.out.events()] == [1, 2, None]


FRAME_KINDS = st.sampled_from(
    ["ticker", "heartbeats", "market_trades", "subscriptions", "status", "bad", "empty"]
)


@given(st.lists(st.tuples(FRAME_KINDS, st.sampled_from([1, 1, 1, 0, 3]), st.booleans()), max_size=60))
def test_checkpoints_account_for_every_number(steps: list[tuple[str, int, bool]]) -> None:
    """Whatever comes: stored, control, dead and missing frames of the checkpoints add up to the numbers."""
    rig = Rig()
    number = -1
    for kind, step, then_checkpoint in steps:
        number = max(0, number + step)
        if kind == "bad":
            rig.take(frame(number, events=7))
        elif kind == "empty":
            rig.take(frame(number, events=[{"type": "update", "tickers": []}]))
        else:
            rig.take(frame(number, kind))
        if then_checkpoint:
            rig.connection.checkpoint()
    rig.connection.checkpoint()
    details = [event.detail for event in rig.out.events("checkpoint")]
    begin = 0
    for detail in details:
        assert detail["from_sequence"] == begin
        begin = detail["to_sequence"] + 1
        accounted = sum(detail["frames"].values()) + detail["dead_frames"] + detail["missing"]
        assert accounted == begin - detail["from_sequence"]
    assert begin == rig.connection.last_sequence + 1
    stored = {message.sequence_num for topic in (TICKS, TRADES) for message in rig.out.of(topic)}
    carried = sum(d["frames"].get("ticker", 0) + d["frames"].get("market_trades", 0) for d in details)
    assert len(stored) == carried - sum(detail["empty_frames"] for detail in details)
    assert len(rig.out.of(DEAD)) == sum(detail["dead_frames"] for detail in details)
    assert sum(event.detail["count"] for event in rig.out.events("gap")) == sum(d["missing"] for d in details)
