"""What can befall the feed, each fault once through the real commands: what is said, what is kept.

Several faults share a play where they do not disturb each other; a play is made once for all its tests.
"""

from __future__ import annotations

import json
import time

import pytest

from cryptovol_dagster_tests.faults.played import NS, START, Played, ago, play
from ingestor.archive.reader import RawReader
from ingestor.envelope import TRADES
from ingestor.exchange.clock import rfc3339_to_ns

START_NS = rfc3339_to_ns(START)


# One connection, whose frames are not what they should be.


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play(
        tmp_path_factory.mktemp("frames"),
        "late_ack:3s; gap@10s:3; repeat@20s; malformed@30s:not_json; malformed@32s:not_utf8;"
        "malformed@34s:truncated; malformed@36s:wrong_types; malformed@38s:bad_time;"
        "unknown_channel@40s:2; drift@45s; giant@50s:499000",
    )


def test_every_frame_of_a_faulty_connection_is_accounted_for(frames: Played) -> None:
    frames.assert_every_number_is_accounted_for()
    sent, feed = frames.sent, frames.summary["feed"]
    assert (feed["connections"], feed["reconnects"]) == (1, 0)
    assert feed["frames"] == sum(sent["frames"].values()) + sent["malformed_frames"]
    assert len(frames.stored) == feed["ticks"] == sent["ticks"]
    between, elsewhere = frames.lost()
    assert between == []
    assert len(elsewhere) == sent["dropped_ticks"] + sent["malformed_ticks"]


def test_a_sequence_gap_is_recorded_with_its_numbers(frames: Played) -> None:
    # Three frames that never came; and three of which the number could not be read.
    gaps = [event["detail"] for event in frames.events("gap")]
    assert [gap["count"] for gap in gaps] == [3, 1, 1, 1]
    assert gaps[0]["to_sequence"] - gaps[0]["from_sequence"] + 1 == frames.sent["dropped_frames"] == 3
    stored = {row["sequence_num"] for row in frames.stored}
    assert stored.isdisjoint(range(gaps[0]["from_sequence"], gaps[0]["to_sequence"] + 1))
    feed = frames.summary["feed"]
    assert (feed["gaps"], feed["missing"]) == (4, 6)


def test_a_repeated_frame_is_stored_once(frames: Played) -> None:
    assert frames.summary["feed"]["repeats"] == frames.sent["repeated_frames"] == 1
    assert sum(event["detail"]["repeats"] for event in frames.events("checkpoint")) == 1
    places = [(row["sequence_num"], row["event_index"], row["entry_index"]) for row in frames.stored]
    assert len(set(places)) == len(places)


def test_a_malformed_frame_is_a_dead_letter_with_its_bytes(frames: Played) -> None:
    assert frames.summary["feed"]["dead_letters"] == len(frames.dead) == frames.sent["malformed_frames"] == 5
    html, not_utf8, truncated, wrong_types, bad_time = frames.dead
    assert html[1] == b"<html><body>502 Bad Gateway</body></html>"
    assert (html[0].startswith("not a frame"), truncated[0].startswith("not a frame")) == (True, True)
    assert not_utf8[0].startswith("not UTF-8")
    assert b"\xff\xfe" in not_utf8[1]
    assert truncated[1].startswith(b'{"channel":')
    assert "events" in wrong_types[0]
    assert b'"events":{"tickers":5}' in wrong_types[1]
    assert "not an RFC 3339 time: 'yesterday'" in bad_time[0]
    # Where the number could be read the frame is dead, not missing.
    assert sum(event["detail"]["dead_frames"] for event in frames.events("checkpoint")) == 2


def test_an_unknown_channel_is_told_once_and_counted(frames: Played) -> None:
    undocumented = "the exchange sent a message that its protocol does not document"
    assert frames.said(f"{undocumented}: {{'unknown_channel': 'simulated_unknown'}}")
    drift = [event["detail"] for event in frames.events("protocol_drift")]
    assert drift.count({"unknown_channel": "simulated_unknown"}) == 1
    assert frames.summary["feed"]["unknown_channels"] == {"simulated_unknown": 2}
    counted = [event["detail"]["frames"].get("simulated_unknown", 0) for event in frames.events("checkpoint")]
    assert sum(counted) == 2


def test_a_drifted_entry_is_kept_as_it_came(frames: Played) -> None:
    entries = [json.loads(row["payload"]) for row in frames.stored]
    drifted = [entry for entry in entries if "simulated_field" in entry]
    assert len(drifted) == frames.sent["faults"]["drift"] == 1
    assert "volume_24_h" not in drifted[0]
    row = next(row for row in frames.stored if "simulated_field" in row["payload"])
    assert row["best_bid"] == float(drifted[0]["best_bid"])


def test_a_giant_under_the_limit_passes(frames: Played) -> None:
    assert frames.sent["frames"]["l2_data"] == 1
    assert sum(event["detail"]["frames"].get("l2_data", 0) for event in frames.events("checkpoint")) == 1


def test_a_late_ack_holds_nothing_up(frames: Played) -> None:
    acks = frames.events("subscribed")
    assert len(acks) == 3
    assert {ack["event_time_ns"] for ack in acks} == {START_NS + 3 * NS}
    before = [row for row in frames.stored if row["event_time_ns"] < START_NS + 3 * NS]
    assert len(before) > 15


# Connections that end, and do not come again at once.


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play(
        tmp_path_factory.mktemp("ends"),
        "disconnect@15s:1006; disconnect@30s:1001; refuse@30s:429:1; silence@45s:5s",
    )


def reasons(played: Played) -> list[tuple[str, int | None]]:
    ended = [event["detail"] for event in played.events("disconnected")]
    return [(detail["reason"], detail["close_code"]) for detail in ended]


def test_every_tick_is_stored_or_in_the_recorded_hole(ends: Played) -> None:
    ends.assert_every_number_is_accounted_for()
    assert ends.summary["feed"]["reconnects"] == len(ends.events("resumed")) == len(ends.holes()) == 3
    assert len(ends.stored) == ends.sent["ticks"]
    between, elsewhere = ends.lost()
    assert elsewhere == []
    # What the market did during the silence was never sent; nothing else is lost.
    assert all(45 * NS <= time_ns - START_NS < 50 * NS for time_ns in between)
    assert len(between) > 10


def test_a_cut_socket_is_reconnected(ends: Played) -> None:
    assert ends.said("the connection broke without a close frame; connecting again in")
    assert reasons(ends)[0] == ("lost", 1006)
    assert ends.said("resumed after a hole of 0.")


def test_a_server_restart_is_reconnected(ends: Played) -> None:
    assert ends.said("the server closed with code 1001; connecting again in")
    assert reasons(ends)[1] == ("server_closed", 1001)


def test_a_refused_handshake_waits_as_long_as_asked(ends: Played) -> None:
    assert ends.said("the server answered the handshake with HTTP 429; connecting again in 1.")
    assert ends.summary["feed"]["failed_attempts"] == ends.sent["refused_handshakes"] == 1
    # An attempt that reached nobody is no connection.
    assert len(ends.events("connected")) == ends.sent["connections"] == 4


def test_silence_is_ended_and_recorded(ends: Played) -> None:
    assert ends.said("no readable frame for 2 s; connecting again in")
    assert [event["detail"]["reason"] for event in ends.events("stale")] == ["frame_silence"]
    assert reasons(ends)[2:] == [("frame_silence", None), ("server_closed", 1000)]
    assert max(event["detail"]["hole_ms"] for event in ends.events("resumed")) > 4_900


# At a pace, since what is on its way when the recorder closes is lost to it.


@pytest.fixture(scope="module")
def paced(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play(
        tmp_path_factory.mktemp("paced"),
        "giant@10s:600000; no_heartbeats@20s:45s",
        hours=0.022,
        speed="20",
    )


def test_what_was_on_its_way_lies_in_the_recorded_hole(paced: Played) -> None:
    paced.assert_every_number_is_accounted_for()
    _, elsewhere = paced.lost()
    assert elsewhere == []
    assert len(paced.stored) <= paced.sent["ticks"]
    assert paced.summary["feed"]["dead_letters"] == 0


def test_a_giant_over_the_limit_ends_the_connection(paced: Played) -> None:
    assert paced.said("closed for 1009: ")
    assert reasons(paced)[0] == ("lost", 1009)
    counted = [event["detail"]["frames"].get("l2_data", 0) for event in paced.events("checkpoint")]
    assert (sum(counted), paced.sent["frames"]["l2_data"]) == (0, 1)


def test_missing_heartbeats_are_a_fault_although_ticks_come(paced: Played) -> None:
    assert paced.said("no heartbeat for 2 s; connecting again in")
    assert [event["detail"]["reason"] for event in paced.events("stale")] == ["heartbeat_silence"]
    assert reasons(paced)[1] == ("heartbeat_silence", None)


# The exchange's clock is ahead.


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> Played:
    # The market is of this moment: a skew is measured against the clock of this machine.
    start = ago(100, time.time_ns())
    return play(
        tmp_path_factory.mktemp("skewed"),
        "skew@20s:200s; skew@40s:3600s; skew@60s:0s",
        start=start,
    )


def test_a_skew_under_the_limit_is_told_once_and_kept(skewed: Played) -> None:
    assert skewed.said("s ahead of this machine's clock; frames over 300 s are dead letters")
    told = [event["detail"]["exchange_ahead_ms"] for event in skewed.events("clock_skew")]
    assert len(told) == 1
    assert 60_000 < told[0] < 200_000
    ahead = [row for row in skewed.stored if row["event_time_ns"] > row["received_at_ns"] + NS]
    assert len(ahead) > 100


def test_a_skew_over_the_limit_is_a_dead_letter_and_nothing_is_lost(skewed: Played) -> None:
    skewed.assert_every_number_is_accounted_for()
    assert skewed.dead
    assert all("s ahead of the receiving clock" in reason for reason, _ in skewed.dead)
    assert all(row["event_time_ns"] - row["received_at_ns"] < 300 * NS for row in skewed.stored)
    counted = sum(event["detail"]["dead_frames"] for event in skewed.events("checkpoint"))
    assert counted == len(skewed.dead) == skewed.summary["feed"]["dead_letters"]
    frames = [json.loads(data) for _, data in skewed.dead]
    entries = [
        entry
        for frame in frames
        if frame["channel"] == "ticker"
        for event in frame["events"]
        for entry in event["tickers"]
    ]
    assert len(skewed.stored) + len(entries) == skewed.sent["ticks"]
    # Trades the same: every frame of them is stored, or dead with all it held.
    trades = RawReader(skewed.raw_dir).read(TRADES, 0, 2**62)
    numbers = set(trades["sequence_num"].to_pylist())
    dead = sum(frame["channel"] == "market_trades" for frame in frames)
    assert len(numbers) + dead == skewed.sent["frames"]["market_trades"]
