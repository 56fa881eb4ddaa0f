"""Formats, bad lines and bad files."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestor.recordings import RecordingError, iter_frames, iter_recording, read_recording

_TIME = "2026-04-04T03:19:18.995321Z"


def frame(number: object = 0, time: str = _TIME, channel: str = "ticker", **entry: Any) -> dict[str, Any]:
    ticker = {
        "type": "ticker",
        "product_id": "BTC-USD",
        "price": "100.5",
        "best_bid": "100",
        "best_ask": "101",
        "best_bid_quantity": "1",
        "best_ask_quantity": "2",
        **entry,
    }
    events = [{"type": "update", "tickers": [ticker]}] if channel == "ticker" else []
    return {"channel": channel, "timestamp": time, "sequence_num": number, "events": events}


def time_of(second: int) -> str:
    return f"2026-04-04T03:{second // 60:02d}:{second % 60:02d}.5Z"


def write(path: Path, lines: list[Any]) -> Path:
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(texts) + b"\n")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recording.ndjson"


def test_the_same_frames_in_every_format(tmp_path: Path) -> None:
    frames = [frame(number, time_of(number)) for number in range(5)]
    flat = [
        {"ws_timestamp": f["timestamp"], "sequence_num": f["sequence_num"]}
        | {k: v for k, v in f["events"][0]["tickers"][0].items() if "quantity" not in k}
        | {"best_bid_qty": "1", "best_ask_qty": "2"}
        for f in frames
    ]
    session = [{"t": "connect", "conn": "a", "ts": 1.0}]
    session += [{"t": "recv", "conn": "a", "ts": 1.5, "data": json.dumps(f)} for f in frames]
    forms = {
        "verbatim frames": frames,
        "received_at/frame lines": [{"received_at": _TIME, "frame": f} for f in frames],
        "flattened ticker lines": flat,
        "session log": session,
    }
    expected = read_recording(write(tmp_path / "verbatim", forms["verbatim frames"])).ticks
    assert expected["sequence_num"].tolist() == [0, 1, 2, 3, 4]
    for name, lines in forms.items():
        recording = read_recording(write(tmp_path / "form", lines))
        assert recording.counts.format == name
        for column in ("event_time_ns", "sequence_num", "bid", "ask", "bid_size", "ask_size", "price"):
            np.testing.assert_array_equal(recording.ticks[column], expected[column], err_msg=name)


def test_gzip_is_recognised_by_content(tmp_path: Path) -> None:
    misnamed = tmp_path / "recording.txt"
    body = json.dumps(frame(0)).encode() + b"\n"
    # Two members, as an appending recorder leaves them.
    misnamed.write_bytes(gzip.compress(body, mtime=0) + gzip.compress(json.dumps(frame(1)).encode()))
    assert read_recording(misnamed).counts.ticks == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("-1", -1.0), ("1e3", 1000.0), (7, 7.0), ("0.1", 0.1), ("1e999", math.inf)],
)
def test_numbers_pass_through(path: Path, text: object, expected: float) -> None:
    recording = read_recording(write(path, [frame(0, best_bid=text)]))
    assert recording.ticks["bid"].tolist() == [expected]
    assert recording.counts.unreadable == 0


@pytest.mark.parametrize("text", ["NaN", "nan", "", "abc", None, True, [], {}, "1_0.x"])
def test_what_is_no_number_becomes_nan_and_costs_no_tick(path: Path, text: object) -> None:
    recording = read_recording(write(path, [frame(0, best_bid=text), frame(1)]))
    assert np.isnan(recording.ticks["bid"][0])
    assert recording.ticks["ask"].tolist() == [101.0, 101.0]
    assert recording.counts.unreadable == 0


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"channel": "tick', "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (frame("x"), "sequence_num is no count"),
        (frame(-1), "sequence_num is no count"),
        (frame(2**70), "sequence_num is no count"),
        (frame(1, time="yesterday"), "yesterday"),
        (frame(1, time="9999-01-01T00:00:00Z"), "9999"),
        (frame(1, product_id=5), "product_id is no text"),
        ({"channel": "ticker", "timestamp": _TIME, "sequence_num": 1}, "events is missing"),
        ({"channel": "ticker", "timestamp": _TIME, "sequence_num": 1, "events": [7]}, "no object"),
    ],
)
def test_an_unreadable_line_is_counted_with_number_and_reason(path: Path, bad: Any, reason: str) -> None:
    recording = read_recording(write(path, [frame(0), bad, frame(1), b"{"]))
    assert recording.counts.unreadable == 2
    assert recording.counts.first_unreadable is not None
    assert recording.counts.first_unreadable.line == 2
    assert reason in recording.counts.first_unreadable.reason
    assert recording.counts.lines == 4
    assert recording.ticks["sequence_num"].tolist() == [0, 1]


def test_blank_lines_are_no_lines(path: Path) -> None:
    recording = read_recording(write(path, [b"", frame(0), b"  \r", frame(1)]))
    assert (recording.counts.lines, recording.counts.unreadable) == (2, 0)


def test_errors_and_unknown_channels_are_counted(path: Path) -> None:
    error = {"type": "error", "message": "authentication failure"}
    recording = read_recording(write(path, [frame(0), error, frame(1, channel="novelty"), frame(2)]))
    assert recording.counts.frames == {"ticker": 2, "error": 1, "novelty": 1}
    assert recording.counts.unknown_channels == {"novelty": 1}
    assert recording.counts.gaps == 0


def test_a_gap_is_flagged_once_for_every_product(path: Path) -> None:
    lines = [
        frame(0),
        frame(1, product_id="ETH-USD"),
        frame(4),
        frame(5, channel="heartbeats"),
        frame(6),
        frame(7, product_id="ETH-USD"),
    ]
    recording = read_recording(write(path, lines))
    assert (recording.counts.gaps, recording.counts.missing) == (1, 2)
    assert recording.ticks["gap_before"].tolist() == [False, False, True, False, True]


def test_a_new_connection_begins_where_the_sequence_falls_back(path: Path) -> None:
    lines = [frame(0, time_of(0)), frame(1, time_of(1)), frame(0, time_of(2)), frame(3, time_of(3))]
    recording = read_recording(write(path, lines))
    assert recording.ticks["connection"].tolist() == [0, 0, 1, 1]
    assert recording.ticks["connections"] == ("recording#1", "recording#2")
    assert (recording.counts.gaps, recording.counts.missing) == (1, 2)


def test_a_fall_back_above_zero_is_a_connection_that_lost_its_beginning(path: Path) -> None:
    recording = read_recording(
        write(path, [frame(50, time_of(0)), frame(51, time_of(1)), frame(2, time_of(2))])
    )
    assert recording.ticks["connection"].tolist() == [0, 0, 1]
    # The file may be cut out of a longer one, so 0 to 49 are not missing; 0 and 1 of the second one are.
    assert (recording.counts.gaps, recording.counts.missing) == (1, 2)


def test_a_late_repeat_is_no_new_connection(path: Path) -> None:
    lines = [frame(0, time_of(0)), frame(1, time_of(1)), frame(2, time_of(2)), frame(1, time_of(1))]
    recording = read_recording(write(path, lines))
    assert recording.counts.repeats == 1
    assert recording.ticks["connection"].tolist() == [0, 0, 0, 0]


def test_connections_of_a_session_log_keep_their_names(path: Path) -> None:
    def received(conn: str, number: int) -> dict[str, Any]:
        return {"t": "recv", "conn": conn, "ts": 1.0, "data": json.dumps(frame(number))}

    lines = [
        {"t": "connect", "conn": "a", "ts": 0.5},
        received("a", 0),
        {"t": "connect", "conn": "b", "ts": 0.5},
        received("b", 0),
        received("a", 1),
        {"t": "connect", "conn": "a", "ts": 2.5},
        received("a", 2),
    ]
    recording = read_recording(write(path, lines))
    assert recording.ticks["connections"] == ("a", "b", "a#2")
    assert recording.ticks["connection"].tolist() == [0, 1, 0, 2]
    assert (recording.counts.gaps, recording.counts.missing) == (1, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty recording"),
        (b"\n\n  \n", "empty recording"),
        (gzip.compress(b"", mtime=0), "empty recording"),
        (b"id,price\n1,2\n", "no recording of the exchange's feed \\(line 1: not JSON"),
        (b'{"e":"trade","s":"BTCUSDT"}\n' * 300, "line 1: neither a frame"),
        (gzip.compress(b"x", mtime=0)[:10] + b"\xff" * 20, "line 1: broken gzip stream"),
        (b"PAR1 not really", "was not written by raw storage"),
    ],
)
def test_files_that_are_no_recording_are_refused_in_one_line(
    path: Path, content: bytes, message: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=message) as caught:
        read_recording(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_files_and_folders_are_refused(tmp_path: Path) -> None:
    for place in (tmp_path / "absent", tmp_path):
        with pytest.raises(RecordingError, match="cannot be read"):
            read_recording(place)


def test_a_gzip_stream_cut_short_gives_what_it_holds(path: Path) -> None:
    whole = gzip.compress(b"".join(json.dumps(frame(n)).encode() + b"\n" for n in range(20_000)))
    path.write_bytes(whole[: len(whole) // 2])
    recording = read_recording(path)
    assert 1_000 < recording.counts.ticks < 20_000
    assert recording.counts.unreadable <= 1


def test_a_recording_without_wanted_ticks_is_empty_not_an_error(path: Path) -> None:
    recording = read_recording(write(path, [frame(0), frame(1)]), products=("ETH-USD",))
    assert recording.ticks["products"] == ("ETH-USD",)
    assert len(recording.ticks["bid"]) == 0
    assert recording.counts.ticks == 2


def test_a_chunk_holds_at_least_a_line(path: Path) -> None:
    with pytest.raises(ValueError, match="chunk_lines is 0"):
        iter_recording(write(path, [frame(0)]), chunk_lines=0)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_field = st.sampled_from(
    ["channel", "timestamp", "sequence_num", "events", "type", "frame", "received_at", "t"]
)
_entry_field = st.sampled_from(
    ["product_id", "price", "best_bid", "best_ask_quantity", "timestamp", "sequence_num"]
)


@st.composite
def _lines(draw: st.DrawFn) -> bytes:
    whole = frame(draw(st.integers(0, 5)))
    if draw(st.booleans()):
        whole["events"][0]["tickers"][0][draw(_entry_field)] = draw(_json)
    if draw(st.booleans()):
        whole[draw(_field)] = draw(_json)
    text = json.dumps(whole).encode()
    cut = draw(st.integers(0, len(text)))
    return draw(
        st.sampled_from([text, text, text[:cut], text[cut:], text + b"\x00", draw(st.binary(max_size=20))])
    )


@settings(max_examples=200, deadline=None)
@given(
    lines=st.lists(_lines(), max_size=6), form=st.sampled_from(["verbatim", "received", "session", "flat"])
)
def test_no_line_whatever_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], form: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.ndjson"
    first = frame(0)
    if form == "received":
        lines = [b'{"received_at":"x","frame":' + line + b"}" for line in lines]
        first = {"received_at": _TIME, "frame": first}
    elif form == "session":
        lines = [
            json.dumps({"t": "recv", "conn": "a", "ts": 1, "data": line.decode("latin-1")}).encode()
            for line in lines
        ]
        first = {"t": "recv", "conn": "a", "ts": 1, "data": json.dumps(first)}
    elif form == "flat":
        first = {"product_id": "BTC-USD", "best_bid": "1", "timestamp": _TIME}
    write(path, [first, *(line.replace(b"\n", b" ") for line in lines)])
    recording = read_recording(path)
    counts = recording.counts
    assert counts.ticks == len(recording.ticks["bid"]) >= 1
    assert sum(counts.frames.values()) + counts.unreadable == counts.lines
    assert (counts.first_unreadable is None) == (counts.unreadable == 0)
    if form != "flat":
        assert sum(1 for _ in iter_frames(path)) <= counts.lines


@given(value=st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12))
@settings(max_examples=100, deadline=None)
def test_decimal_text_is_read_as_python_would(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "number.ndjson"
    text = str(value)
    assert read_recording(write(path, [frame(0, price=text)])).ticks["price"][0] == float(text)
