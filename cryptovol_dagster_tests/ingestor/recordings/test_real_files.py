"""The real recordings, counted exactly."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ingestor.exchange.clock import rfc3339_to_ns
from ingestor.exchange.messages import TickerEvent
from ingestor.exchange.parse import parse_frame
from ingestor.recordings import RecordingError, iter_frames, iter_recording, read_recording


@pytest.mark.parametrize(
    ("name", "frames", "ticks_by_product", "connections"),
    [
        (
            "btc_2026-04-05_20min_verbatim.ndjson.gz",
            {"ticker": 5_970, "subscriptions": 1},
            {"BTC-USD": 5_970},
            1,
        ),
        ("btc_eth_2026-04-04_2h.ndjson.gz", {"ticker": 30_123}, {"BTC-USD": 17_251, "ETH-USD": 12_872}, 1),
        (
            "btc_2025-12-06_overnight_sessions.ndjson.gz",
            {"ticker": 28_381, "subscriptions": 12},
            {"BTC-USD": 28_381},
            # Eleven falls back to 0, hence twelve connections.
            12,
        ),
        (
            "multichannel_2026-08-09_25s_session.jsonl.gz",
            {
                "l2_data": 775,
                "ticker": 160,
                "market_trades": 59,
                "heartbeats": 25,
                "candles": 6,
                "subscriptions": 5,
            },
            {"BTC-USD": 73, "ETH-USD": 87},
            1,
        ),
        ("faulty_every_line_twice.ndjson.gz", {"ticker": 7_156}, {"BTC-USD": 7_156}, 1),
        ("faulty_heartbeats_dropped.ndjson.gz", {"ticker": 2_500}, {"BTC-USD": 1_428, "ETH-USD": 1_072}, 1),
    ],
)
def test_every_frame_and_tick_is_counted(
    recordings: Path, name: str, frames: dict[str, int], ticks_by_product: dict[str, int], connections: int
) -> None:
    recording = read_recording(recordings / name)
    ticks = recording.ticks
    assert recording.counts.frames == frames
    assert recording.counts.ticks == sum(ticks_by_product.values()) == len(ticks["bid"])
    by_product = Counter(ticks["products"][code] for code in ticks["product"])
    assert by_product == ticks_by_product
    assert len(ticks["connections"]) == connections
    assert recording.counts.unreadable == 0
    assert not recording.counts.unknown_channels
    assert np.isfinite(ticks["bid"]).all()
    assert (ticks["ask"] >= ticks["bid"]).all()


@pytest.mark.parametrize(
    "name",
    [
        "btc_2026-04-05_20min_verbatim.ndjson.gz",
        "btc_eth_2026-04-04_2h.ndjson.gz",
        "btc_2025-12-06_overnight_sessions.ndjson.gz",
        "multichannel_2026-08-09_25s_session.jsonl.gz",
    ],
)
def test_sequences_without_a_hole_show_no_gap(recordings: Path, name: str) -> None:
    recording = read_recording(recordings / name)
    assert (recording.counts.gaps, recording.counts.missing, recording.counts.repeats) == (0, 0, 0)
    assert recording.counts.gaps_known
    assert not recording.ticks["gap_before"].any()


def test_dropped_heartbeats_are_recorded_gaps(recordings: Path) -> None:
    recording = read_recording(recordings / "faulty_heartbeats_dropped.ndjson.gz")
    numbers = recording.ticks["sequence_num"]
    assert (numbers[0], numbers[-1]) == (0, 3_164)
    assert recording.counts.missing == 3_165 - 2_500 == 665
    assert recording.counts.gaps == int((np.diff(numbers) > 1).sum())
    # Slow and obvious: a row is flagged where numbers are missing since its product's row before.
    missing_before = np.concatenate(([0], np.cumsum(np.diff(numbers) > 1)))
    for code in range(2):
        rows = recording.ticks["product"] == code
        passed = missing_before[rows]
        expected = np.diff(passed, prepend=passed[0]) > 0
        np.testing.assert_array_equal(recording.ticks["gap_before"][rows], expected)
    assert np.isfinite(recording.ticks["bid_size"]).all()


def test_every_line_twice_is_seen_without_sequence_numbers(recordings: Path) -> None:
    recording = read_recording(recordings / "faulty_every_line_twice.ndjson.gz")
    assert recording.counts.repeats == 3_578
    assert (recording.ticks["sequence_num"] == -1).all()
    assert not recording.counts.gaps_known
    assert np.isnan(recording.ticks["bid_size"]).all()
    np.testing.assert_array_equal(recording.ticks["bid"][::2], recording.ticks["bid"][1::2])


def test_repeated_frames_are_counted_by_their_numbers(recordings: Path, tmp_path: Path) -> None:
    source = recordings / "btc_2026-04-05_20min_verbatim.ndjson.gz"
    lines = gzip.decompress(source.read_bytes()).splitlines(keepends=True)
    doubled = tmp_path / "doubled.ndjson"
    doubled.write_bytes(b"".join(line * 2 for line in lines))
    recording = read_recording(doubled)
    assert recording.counts.repeats == 5_971
    assert recording.counts.gaps == 0
    assert len(recording.ticks["connections"]) == 1
    assert recording.counts.ticks == 2 * 5_970


def test_values_agree_with_the_feeds_own_parser(recordings: Path) -> None:
    path = recordings / "multichannel_2026-08-09_25s_session.jsonl.gz"
    ticks = read_recording(path).ticks
    expected = []
    for recorded in iter_frames(path):
        frame = parse_frame(recorded.data)
        if frame.channel != "ticker":
            continue
        for event in frame.events:
            assert isinstance(event, TickerEvent)
            for entry in event.tickers:
                found = json.loads(bytes(entry))
                expected.append(
                    (
                        found["product_id"],
                        frame.event_time_ns,
                        frame.sequence_num,
                        float(found["best_bid"]),
                        float(found["best_ask"]),
                        float(found["best_bid_quantity"]),
                        float(found["best_ask_quantity"]),
                        float(found["price"]),
                    )
                )
    found_rows = zip(
        (ticks["products"][code] for code in ticks["product"]),
        *(
            ticks[name].tolist()
            for name in ("event_time_ns", "sequence_num", "bid", "ask", "bid_size", "ask_size", "price")
        ),
        strict=True,
    )
    assert list(found_rows) == expected


@pytest.mark.parametrize("chunk_lines", [1, 997, 50_000])
def test_chunks_add_up_to_the_whole(recordings: Path, chunk_lines: int) -> None:
    path = recordings / "faulty_heartbeats_dropped.ndjson.gz"
    whole = read_recording(path)
    reader = iter_recording(path, chunk_lines=chunk_lines)
    chunks = list(reader)
    for name in ("product", "connection", "event_time_ns", "sequence_num", "bid", "gap_before"):
        np.testing.assert_array_equal(np.concatenate([chunk[name] for chunk in chunks]), whole.ticks[name])
    assert max(len(chunk["bid"]) for chunk in chunks) <= chunk_lines
    assert reader.counts == whole.counts


def test_products_are_kept_in_the_order_asked_for(recordings: Path) -> None:
    path = recordings / "btc_eth_2026-04-04_2h.ndjson.gz"
    both = read_recording(path, products=("SOL-USD", "BTC-USD")).ticks
    assert both["products"] == ("SOL-USD", "BTC-USD")
    assert set(both["product"].tolist()) == {1}
    assert len(both["bid"]) == 17_251


def test_frames_come_out_byte_for_byte(recordings: Path) -> None:
    path = recordings / "btc_2026-04-05_20min_verbatim.ndjson.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines()
    frames = list(iter_frames(path))
    assert len(frames) == 5_971
    for line, frame in zip(lines, frames, strict=True):
        assert line.endswith(b'"frame":' + frame.data + b"}")
    assert frames[0].received_at_ns == rfc3339_to_ns("2026-04-05T22:35:13.865365Z")
    assert frames[0].event_time_ns == rfc3339_to_ns("2026-04-05T22:35:13.92532762Z")


@pytest.mark.parametrize("name", ["faulty_every_line_twice.ndjson.gz", "faulty_heartbeats_dropped.ndjson.gz"])
def test_flattened_lines_are_no_frames(recordings: Path, name: str) -> None:
    with pytest.raises(RecordingError, match="flattened ticker lines"):
        list(iter_frames(recordings / name))
