"""Connections to a market: numbers, acks, snapshots, heartbeats and faults, without a socket."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ingestor.exchange.clock import rfc3339_to_ns
from ingestor.exchange.parse import FrameError, parse_frame
from ingestor.recordings import RecordingError, iter_frames, read_recording
from ingestor.simulator.faults import parse_faults
from ingestor.simulator.frames import Segment
from ingestor.simulator.market import SyntheticMarket
from ingestor.simulator.playback import Close, Line, Playback, Quiet
from ingestor.simulator.recorded import RecordedMarket
from ingestor.simulator.write import write_recording

NS = 1_000_000_000
START_NS = rfc3339_to_ns("2025-12-01T00:00:00Z")
PRODUCTS = ("BTC-USD", "ETH-USD")


def synthetic(hours: float = 0.05, faults: str = "") -> Playback:
    def segments() -> Iterator[Segment]:
        return iter([SyntheticMarket(PRODUCTS, START_NS, 7).segment(hours)])

    return Playback(segments, parse_faults(faults))


def subscribe(channel: str, *products: str, kind: str = "subscribe") -> str:
    return json.dumps({"type": kind, "channel": channel, "product_ids": list(products)})


def follow(playback: Playback, *channels: str) -> tuple[Line, list[bytes]]:
    line = Line(playback)
    frames = [f for channel in channels for f in line.receive(subscribe(channel, *PRODUCTS))]
    return line, frames + line.start()


def play(line: Line, most_frames: int = 64) -> tuple[list[bytes], Close, list[Quiet]]:
    frames: list[bytes] = []
    quiet: list[Quiet] = []
    while True:
        step = line.advance(None, most_frames)
        frames += step.frames
        if isinstance(step.then, Close):
            return frames, step.then, quiet
        if isinstance(step.then, Quiet):
            quiet.append(step.then)


def loads(frames: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(frame) for frame in frames]


ALL = ("ticker", "heartbeats", "market_trades")


def test_snapshot_first_then_the_ack_with_the_full_set() -> None:
    line = Line(synthetic())
    first = loads(line.receive(subscribe("ticker", "BTC-USD")))
    assert [frame["channel"] for frame in first] == ["ticker", "subscriptions"]
    assert first[0]["events"][0]["type"] == "snapshot"
    assert first[1]["events"] == [{"subscriptions": {"ticker": ["BTC-USD"]}}]
    second = loads(line.receive(subscribe("heartbeats")))
    assert second[0]["events"] == [{"subscriptions": {"ticker": ["BTC-USD"], "heartbeats": ["heartbeats"]}}]
    third = loads(line.receive(subscribe("market_trades", "ETH-USD")))
    assert [frame["channel"] for frame in third] == ["market_trades", "subscriptions"]
    assert third[0]["events"][0]["type"] == "snapshot"
    assert [frame["sequence_num"] for frame in first + second + third] == [0, 1, 2, 3, 4]
    gone = loads(line.receive(subscribe("ticker", kind="unsubscribe")))
    assert gone[0]["events"] == [
        {"subscriptions": {"heartbeats": ["heartbeats"], "market_trades": ["ETH-USD"]}}
    ]


@pytest.mark.parametrize(
    "message",
    [subscribe("trades"), subscribe("ticker", kind="login"), '{"type":"subscribe","channel":"user"}'],
)
def test_a_wrong_channel_is_an_authentication_failure(message: str) -> None:
    line = Line(synthetic())
    assert line.receive(message) == [b'{"type":"error","message":"authentication failure"}']
    assert not line.subscribed


@pytest.mark.parametrize("message", ["", "{", "[]", b"\xff", '{"type":1}'])
def test_an_unreadable_message_is_an_error(message: str | bytes) -> None:
    assert json.loads(Line(synthetic()).receive(message)[0])["type"] == "error"


def test_numbers_have_no_gap_over_all_channels_and_hearts_beat_each_second() -> None:
    line, greeting = follow(synthetic(hours=0.05), *ALL)
    frames, close, _ = play(line)
    parsed = loads(greeting + frames)
    assert [frame["sequence_num"] for frame in parsed] == list(range(len(parsed)))
    assert (close.code, close.finished) == (1000, True)
    beats = [frame for frame in parsed if frame["channel"] == "heartbeats"]
    assert [beat["events"][0]["heartbeat_counter"] for beat in beats] == list(range(1, 180))
    assert [rfc3339_to_ns(beat["timestamp"]) for beat in beats] == [START_NS + n * NS for n in range(1, 180)]
    assert {frame["channel"] for frame in parsed} == {
        "ticker",
        "heartbeats",
        "market_trades",
        "subscriptions",
    }


@pytest.mark.parametrize("most_frames", [1, 7, 100_000])
def test_bytes_do_not_depend_on_the_steps(most_frames: int) -> None:
    faults = "gap@20s:3; repeat@30s; silence@60s:5s"
    expected = play(follow(synthetic(faults=faults), *ALL)[0])
    assert play(follow(synthetic(faults=faults), *ALL)[0], most_frames) == expected


def test_pacing_in_market_time_sends_the_same_bytes() -> None:
    expected, _, _ = play(follow(synthetic(), *ALL)[0])
    line, _ = follow(synthetic(), *ALL)
    frames: list[bytes] = []
    until_ns = START_NS
    while True:
        step = line.advance(until_ns, 1_000)
        frames += step.frames
        assert all(rfc3339_to_ns(json.loads(frame)["timestamp"]) <= until_ns for frame in step.frames)
        if step.then is not None:
            break
        until_ns += 730_000_000
    assert frames == expected


def test_only_what_is_subscribed_to_is_sent() -> None:
    line = Line(synthetic())
    line.receive(subscribe("ticker", "ETH-USD"))
    parsed = loads(play(line)[0])
    assert {frame["channel"] for frame in parsed} == {"ticker"}
    assert {e["product_id"] for f in parsed for ev in f["events"] for e in ev["tickers"]} == {"ETH-USD"}


def test_a_gap_uses_up_numbers_that_are_never_sent() -> None:
    playback = synthetic(faults="gap@60s:3")
    line, greeting = follow(playback, *ALL)
    numbers = [frame["sequence_num"] for frame in loads(greeting + play(line)[0])]
    missing = sorted(set(range(numbers[-1])) - set(numbers))
    assert missing == list(range(missing[0], missing[0] + 3))
    assert playback.sent.dropped_frames == 3
    whole = synthetic()
    play(follow(whole, *ALL)[0])
    assert playback.sent.ticks + playback.sent.dropped_ticks == whole.sent.ticks


def test_a_repeat_is_the_same_frame_twice() -> None:
    playback = synthetic(faults="repeat@60s")
    frames, _, _ = play(follow(playback, *ALL)[0])
    pairs = [(a, b) for a, b in pairwise(frames) if a == b]
    assert len(pairs) == playback.sent.repeated_frames == 1
    assert rfc3339_to_ns(json.loads(pairs[0][0])["timestamp"]) >= START_NS + 60 * NS


def test_a_silence_is_quiet_by_the_wall_clock_and_uses_no_numbers() -> None:
    playback = synthetic(faults="silence@60s:12s")
    line, greeting = follow(playback, *ALL)
    frames, _, quiet = play(line)
    assert quiet == [Quiet(12.0)]
    parsed = loads(greeting + frames)
    assert [frame["sequence_num"] for frame in parsed] == list(range(len(parsed)))
    seconds = [(rfc3339_to_ns(frame["timestamp"]) - START_NS) / NS for frame in parsed]
    assert not [second for second in seconds if 60 <= second < 72]
    beats = [round(s) for s, frame in zip(seconds, parsed, strict=True) if frame["channel"] == "heartbeats"]
    assert beats == [second for second in range(1, 180) if not 60 <= second < 72]
    assert playback.sent.skipped_frames > 50


def test_after_a_disconnect_the_market_goes_on_with_a_snapshot_and_new_numbers() -> None:
    playback = synthetic(faults="disconnect@60s; disconnect@90s:1001")
    ends: list[tuple[float, int, int]] = []
    while not playback.finished:
        line, greeting = follow(playback, *ALL)
        frames, close, _ = play(line)
        parsed = loads(greeting + frames)
        assert [frame["sequence_num"] for frame in parsed] == list(range(len(parsed)))
        assert parsed[0]["events"][0]["type"] == "snapshot"
        # Trades of a snapshot have been before; its quotes stand now.
        assert parsed[0]["channel"] == "ticker"
        ends.append(((playback.now_ns - START_NS) / NS, close.code, parsed[-1]["sequence_num"]))
    assert [code for _, code, _ in ends] == [1006, 1001, 1000]
    assert [round(at) for at, _, _ in ends] == [60, 90, 180]
    assert playback.sent.connections == 3
    whole = synthetic()
    play(follow(whole, *ALL)[0])
    snapshots = 2 * len(PRODUCTS)
    assert playback.sent.ticks == whole.sent.ticks + snapshots


@pytest.mark.parametrize(
    ("damage", "says", "has_number"),
    [
        ("truncated", "not a frame", False),
        ("not_json", "not a frame", False),
        ("not_utf8", "not UTF-8", False),
        ("wrong_types", "events", True),
        ("bad_time", "timestamp", True),
    ],
)
def test_a_malformed_frame_has_used_up_its_number(damage: str, says: str, has_number: bool) -> None:
    playback = synthetic(hours=0.02, faults=f"malformed@20.02s:{damage}")
    line, greeting = follow(playback, *ALL)
    readable, spoilt = [], []
    for frame in greeting + play(line)[0]:
        try:
            readable.append(parse_frame(frame).sequence_num)
        except FrameError as error:
            spoilt.append(error)
    assert len(spoilt) == playback.sent.malformed_frames == playback.sent.faults["malformed"] == 1
    assert says in spoilt[0].reason
    missing = set(range(readable[-1] + 1)) - set(readable)
    assert len(missing) == 1
    assert spoilt[0].sequence_num == (missing.pop() if has_number else None)
    assert sum(playback.sent.frames.values()) == len(readable)
    whole = synthetic(hours=0.02)
    play(follow(whole, *ALL)[0])
    assert playback.sent.ticks + playback.sent.malformed_ticks == whole.sent.ticks


def test_a_giant_and_unheard_of_frames_come_besides_with_numbers_of_their_own() -> None:
    playback = synthetic(hours=0.02, faults="giant@20s:4321; unknown_channel@30s:3")
    line, greeting = follow(playback, *ALL)
    frames = greeting + play(line)[0]
    parsed = [parse_frame(frame) for frame in frames]
    assert [frame.sequence_num for frame in parsed] == list(range(len(parsed)))
    assert [len(data) for data, frame in zip(frames, parsed, strict=True) if frame.channel == "l2_data"] == [
        4_321
    ]
    unknown = [frame for frame in parsed if not frame.known]
    assert [round((frame.event_time_ns - START_NS) / NS) for frame in unknown] == [30, 30, 30]
    assert playback.sent.frames["l2_data"] == 1
    assert playback.sent.frames["simulated_unknown"] == 3
    whole = synthetic(hours=0.02)
    play(follow(whole, *ALL)[0])
    assert playback.sent.ticks == whole.sent.ticks


def test_a_drifted_entry_has_a_field_too_many_and_one_too_few() -> None:
    playback = synthetic(hours=0.02, faults="drift@20s")
    entries = [
        entry
        for frame in loads(play(follow(playback, *ALL)[0])[0])
        if frame["channel"] == "ticker"
        for event in frame["events"]
        for entry in event["tickers"]
    ]
    known = entries[0].keys()
    drifted = [entry for entry in entries if entry.keys() != known]
    assert len(drifted) == 1
    assert known - drifted[0].keys() == {"volume_24_h"}
    assert drifted[0].keys() - known == {"simulated_field"}
    assert playback.sent.ticks == len(entries) + len(PRODUCTS)  # the greeting's snapshots


def test_a_skew_moves_timestamps_and_nothing_else() -> None:
    plain = play(follow(synthetic(hours=0.02), *ALL)[0])[0]
    playback = synthetic(hours=0.02, faults="skew@20s:120s; skew@40s:-2s; skew@60s:0s")
    skewed = play(follow(playback, *ALL)[0])[0]
    moved = set()
    for was, found in zip(loads(plain), loads(skewed), strict=True):
        at_ns = rfc3339_to_ns(was.pop("timestamp"))
        seconds = (at_ns - START_NS) / NS
        expected_s = 0 if seconds < 20 or seconds >= 60 else 120 if seconds < 40 else -2
        assert rfc3339_to_ns(found.pop("timestamp")) - at_ns == expected_s * NS
        assert was == found
        moved.add(expected_s)
    assert moved == {0, 120, -2}


def test_heartbeats_stay_away_while_all_else_goes_on(recordings: Path) -> None:
    parsed = loads(play(follow(synthetic(hours=0.02, faults="no_heartbeats@20s:30s"), *ALL)[0])[0])
    seconds = [
        round((rfc3339_to_ns(frame["timestamp"]) - START_NS) / NS)
        for frame in parsed
        if frame["channel"] == "heartbeats"
    ]
    assert seconds == [*range(1, 20), *range(50, 72)]
    numbers = [frame["sequence_num"] for frame in parsed]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    # A recording's own heartbeats, too; it is then numbered anew.
    path = recordings / "multichannel_2026-08-09_25s_session.jsonl.gz"
    playback = Playback(RecordedMarket([path]).segments, parse_faults("no_heartbeats@5s:10s"))
    line, greeting = follow(playback, "ticker", "heartbeats", "market_trades", "candles", "level2")
    parsed = loads(greeting + play(line)[0])
    assert [frame["sequence_num"] for frame in parsed] == list(range(len(parsed)))
    assert sum(frame["channel"] == "heartbeats" for frame in parsed) == 25 - 10


def test_a_late_ack_comes_behind_what_was_subscribed_to() -> None:
    playback = synthetic(hours=0.02, faults="late_ack:3s")
    line, greeting = follow(playback, *ALL)
    parsed = loads(greeting + play(line)[0])
    assert [frame["sequence_num"] for frame in parsed] == list(range(len(parsed)))
    assert "subscriptions" not in {frame["channel"] for frame in loads(greeting)}
    acks = [frame for frame in parsed if frame["channel"] == "subscriptions"]
    assert [rfc3339_to_ns(ack["timestamp"]) for ack in acks] == [START_NS + 3 * NS] * len(ALL)
    assert list(acks[-1]["events"][0]["subscriptions"]) == ["ticker", "heartbeats", "market_trades"]
    assert parsed.index(acks[0]) > 20
    # Only what is asked for while it holds is late.
    later = synthetic(hours=0.02, faults="late_ack@30s:3s")
    assert [frame["channel"] for frame in loads(follow(later, "ticker")[1])][-1] == "subscriptions"


def test_handshakes_are_refused_from_their_time_on() -> None:
    playback = synthetic(hours=0.02, faults="refuse@0s:503; disconnect@20s; refuse@20s:429:2")
    assert [playback.refuse_handshake() for _ in range(2)] == [503, None]
    line, _ = follow(playback, *ALL)
    assert play(line)[1] == Close(1006)
    assert [playback.refuse_handshake() for _ in range(3)] == [429, 429, None]
    assert playback.sent.refused_handshakes == 3
    assert playback.sent.faults == {"refuse": 2, "disconnect": 1}


def test_a_market_can_be_played_again() -> None:
    playback = synthetic(hours=0.02)
    first = play(follow(playback, *ALL)[0])
    playback.restart()
    assert play(follow(playback, *ALL)[0]) == first


def test_a_recording_that_has_everything_is_sent_verbatim(recordings: Path) -> None:
    path = recordings / "multichannel_2026-08-09_25s_session.jsonl.gz"
    line = Line(Playback(RecordedMarket([path]).segments))
    for channel in ("market_trades", "candles", "ticker", "level2"):
        assert line.receive(subscribe(channel, *PRODUCTS)) == []
    assert line.receive(subscribe("heartbeats")) == []
    assert line.start() == []
    assert play(line)[0] == [frame.data for frame in iter_frames(path)]


def test_a_recording_without_heartbeats_is_numbered_anew_with_entries_untouched(recordings: Path) -> None:
    path = recordings / "btc_2026-04-05_20min_verbatim.ndjson.gz"
    playback = Playback(RecordedMarket([path]).segments)
    line, greeting = follow(playback, *ALL)
    frames = greeting + play(line)[0]
    parsed = loads(frames)
    assert [frame["sequence_num"] for frame in parsed] == list(range(len(parsed)))
    beats = [frame for frame in parsed if frame["channel"] == "heartbeats"]
    assert 1_195 < len(beats) <= 1_201
    assert not [frame for frame in parsed if frame["channel"] == "market_trades"]
    recorded = [frame.data for frame in iter_frames(path) if frame.channel == "ticker"]
    sent = [frame for frame in frames if b'"channel":"ticker"' in frame]
    assert [data[data.index(b'"events"') :] for data in sent] == [
        data[data.index(b'"events"') :] for data in recorded
    ]
    assert playback.sent.ticks == 5_970


def test_a_client_of_the_ticker_alone_gets_the_recorded_numbers(recordings: Path) -> None:
    path = recordings / "btc_2026-04-05_20min_verbatim.ndjson.gz"
    line, greeting = follow(Playback(RecordedMarket([path]).segments), "ticker")
    assert greeting == []
    assert play(line)[0] == [frame.data for frame in iter_frames(path)]


def test_frames_that_come_besides_number_a_recording_anew(recordings: Path) -> None:
    path = recordings / "btc_2026-04-05_20min_verbatim.ndjson.gz"
    faults = parse_faults("unknown_channel@60s:2; drift@90s; malformed@120s; skew@600s:60s")
    playback = Playback(RecordedMarket([path]).segments, faults)
    line, greeting = follow(playback, "ticker")
    assert [frame["channel"] for frame in loads(greeting)] == ["subscriptions"]
    frames = greeting + play(line)[0]
    readable = [json.loads(frame) for frame in frames if frame.endswith(b"}")]
    assert len(readable) == len(frames) - 1
    assert readable[-1]["sequence_num"] == len(frames) - 1
    assert playback.sent.frames == {"ticker": 5_969, "subscriptions": 1, "simulated_unknown": 2}
    assert (playback.sent.ticks, playback.sent.malformed_ticks) == (5_969, 1)
    assert sum("simulated_field" in json.dumps(frame) for frame in readable) == 1
    recorded = list(iter_frames(path))
    ahead_ns = rfc3339_to_ns(readable[-1]["timestamp"]) - recorded[-1].event_time_ns
    assert ahead_ns == 60 * NS


def test_connections_of_a_recording_are_played_one_after_the_other(recordings: Path) -> None:
    path = recordings / "btc_2025-12-06_overnight_sessions.ndjson.gz"
    playback = Playback(RecordedMarket([path, path]).segments)
    codes = []
    while not playback.finished:
        line, greeting = follow(playback, *ALL)
        frames, close, _ = play(line)
        numbers = [frame["sequence_num"] for frame in loads(greeting + frames)]
        assert numbers == list(range(len(numbers)))
        codes.append(close.code)
    assert codes == [1001] * 23 + [1000]
    assert playback.sent.ticks == 2 * 28_381


def test_a_recording_left_in_the_middle_goes_on_anew(recordings: Path) -> None:
    path = recordings / "btc_2026-04-05_20min_verbatim.ndjson.gz"
    playback = Playback(RecordedMarket([path]).segments, parse_faults("disconnect@600s"))
    line, _ = follow(playback, "ticker")
    assert play(line)[1] == Close(1006)
    line, greeting = follow(playback, "ticker")
    parsed = loads(greeting + play(line)[0])
    assert [frame["sequence_num"] for frame in parsed] == list(range(len(parsed)))
    assert [frame["channel"] for frame in parsed[:2]] == ["ticker", "subscriptions"]
    assert playback.sent.ticks == 5_970 + 1


def test_recordings_without_frames_are_refused(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="flattened"):
        RecordedMarket([recordings / "faulty_every_line_twice.ndjson.gz"])
    only_header = tmp_path / "log.jsonl"
    only_header.write_text('{"t":"connect","conn":"a","ts":1.0}\n')
    with pytest.raises(RecordingError, match="contains no frame"):
        RecordedMarket([only_header])


def test_a_written_market_reads_back_as_it_was_sent(tmp_path: Path) -> None:
    faults = "gap@60s:3; repeat@80s; disconnect@100s; silence@120s:20s"
    path, again = tmp_path / "market.ndjson.gz", tmp_path / "again.ndjson.gz"
    playback = synthetic(faults=faults)
    write_recording(playback, PRODUCTS, path)
    recording = read_recording(path)
    assert recording.counts.frames == playback.sent.frames
    assert recording.counts.ticks == playback.sent.ticks
    assert (recording.counts.gaps, recording.counts.missing, recording.counts.repeats) == (1, 3, 1)
    assert len(recording.ticks["connections"]) == 2
    assert recording.ticks["gap_before"].sum() == len(PRODUCTS)
    write_recording(synthetic(faults=faults), PRODUCTS, again)
    assert again.read_bytes() == path.read_bytes()
    plain = tmp_path / "market.ndjson"
    write_recording(synthetic(faults=faults), PRODUCTS, plain)
    assert plain.read_bytes() == gzip.decompress(path.read_bytes())
    assert sorted(tmp_path.iterdir()) == sorted([path, again, plain])


@pytest.mark.parametrize("damage", ["truncated", "not_json", "not_utf8", "wrong_types", "bad_time"])
def test_a_written_market_keeps_what_was_spoilt(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "market.ndjson"
    playback = synthetic(hours=0.02, faults=f"malformed@20s:{damage}; unknown_channel@30s:2; giant@40s:5000")
    write_recording(playback, PRODUCTS, path)
    counts = read_recording(path).counts
    assert counts.lines == sum(playback.sent.frames.values()) + 1
    assert counts.ticks == playback.sent.ticks
    # The reader does not look at the encoding of what it has no use for, here a heartbeat's.
    assert counts.unreadable == (damage != "not_utf8")
    assert counts.unknown_channels == {"simulated_unknown": 2}
