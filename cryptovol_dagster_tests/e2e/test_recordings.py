"""Every real recording through the real commands: played to the recorder, and read by `replay`."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from cryptovol_dagster.cli import main
from cryptovol_dagster_tests.e2e.processes import cryptovol, environment, simulated
from cryptovol_dagster_tests.ingestor.feed.support import RememberingPublisher
from ingestor.archive.reader import RawReader
from ingestor.envelope import DEAD, EVENTS, TICKS, TRADES
from ingestor.feed.feed import Feed
from ingestor.settings import Settings
from ingestor.settings.sections import IngestSettings, StorageSettings
from ingestor.simulator.playback import Playback
from ingestor.simulator.recorded import RecordedMarket
from ingestor.simulator.server import Simulator

EVER_NS = 2**62


@dataclass(frozen=True)
class Expected:
    """What a recording comes to when it is played to the recorder.

    Attributes:
        products: what it is about.
        ticks: ticker entries by product.
        frames: frames by channel as the recorder counts them; heartbeats and acknowledgements that the
            recording lacks are the simulator's.
        trades: entries of market_trades.
        connections: how many it was recorded on.
        rows: feature rows of its hours.
    """

    products: str
    ticks: dict[str, int]
    frames: dict[str, int]
    trades: int
    connections: int
    rows: int


PLAYED = {
    "btc_2026-04-05_20min_verbatim.ndjson.gz": Expected(
        products="BTC-USD",
        ticks={"BTC-USD": 5_970},
        frames={"ticker": 5_970, "heartbeats": 1_199, "subscriptions": 1},
        trades=0,
        connections=1,
        rows=3_600,
    ),
    "multichannel_2026-08-09_25s_session.jsonl.gz": Expected(
        products="BTC-USD,ETH-USD",
        ticks={"BTC-USD": 73, "ETH-USD": 87},
        frames={"ticker": 160, "market_trades": 59, "heartbeats": 25, "subscriptions": 1},
        trades=279,
        connections=1,
        rows=7_200,
    ),
    "btc_2025-12-06_overnight_sessions.ndjson.gz": Expected(
        products="BTC-USD",
        ticks={"BTC-USD": 28_381},
        frames={"ticker": 28_381, "heartbeats": 7_959, "subscriptions": 12},
        trades=0,
        connections=12,
        rows=10_800,
    ),
}


def recorded(folder: Path, recording: Path, products: str) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Play a recording to the recorder: what was sent, what the recorder says, raw storage."""
    settings = Settings(
        ingest=IngestSettings(backoff_initial_s=0.01, backoff_max_s=0.05),
        storage=StorageSettings(data_dir=folder / "data"),
    )
    env = environment(settings, folder)
    with simulated("--recording", recording, "--speed", "max", "--once", env=env) as served:
        done = cryptovol(
            "ingest", "--url", served.url, "--products", products, "--until-closed", "--json", env=env
        )
        assert done.returncode == 0, done.stderr
        sent = served.ended()
    return sent, json.loads(done.stdout.splitlines()[-1]), settings.storage.raw_dir


def replayed(out: Path, files: Sequence[Path]) -> tuple[dict[str, Any], pd.DataFrame]:
    named = [argument for file in files for argument in ("--data-file", str(file))]
    done = CliRunner().invoke(main, ["replay", *named, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), pd.read_parquet(out)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAYED)
def test_a_recording_played_to_the_recorder_is_stored_whole_and_replays_alike(
    recordings: Path, tmp_path: Path, name: str
) -> None:
    expected = PLAYED[name]
    sent, summary, raw_dir = recorded(tmp_path, recordings / name, expected.products)
    feed = summary["feed"]
    reader = RawReader(raw_dir)

    assert sent["ticks"] == feed["ticks"] == sum(expected.ticks.values())
    assert (feed["connections"], feed["reconnects"]) == (expected.connections, expected.connections - 1)
    assert (feed["gaps"], feed["missing"], feed["repeats"], feed["dead_letters"]) == (0, 0, 0, 0)
    assert feed["frames"] == sum(sent["frames"].values())
    events = reader.read(EVENTS, 0, EVER_NS).to_pylist()
    frames: Counter[str] = Counter()
    for event in events:
        if event["kind"] == "checkpoint":
            frames.update(json.loads(event["payload"])["frames"])
    assert frames == sent["frames"] == expected.frames

    ticks = reader.read(TICKS, 0, EVER_NS)
    assert Counter(ticks["product_id"].to_pylist()) == expected.ticks
    assert reader.count(TRADES, 0, EVER_NS) == feed["trades"] == expected.trades
    assert reader.count(DEAD, 0, EVER_NS) == 0

    counts, of_recording = replayed(tmp_path / "recording.parquet", [recordings / name])
    assert counts["rows"] == expected.rows
    files = [file.path for file in reader.files(TICKS, 0, EVER_NS)]
    raw_counts, of_raw = replayed(tmp_path / "raw.parquet", files)
    for count in ("ticks", "kept", "duplicates", "late", "rejected", "missing", "rows", "valid_rows"):
        assert raw_counts[count] == counts[count], count
    key = ["product", "bar_start"]
    pd.testing.assert_frame_equal(
        of_raw.astype({"product": str}).sort_values(key, ignore_index=True),
        of_recording.astype({"product": str}).sort_values(key, ignore_index=True),
    )


async def test_a_session_of_every_channel_is_heard_with_its_own_numbers(recordings: Path) -> None:
    """Subscribed to all that was recorded, the recorder gets the session byte for byte."""
    path = recordings / "multichannel_2026-08-09_25s_session.jsonl.gz"
    playback = Playback(RecordedMarket([path]).segments)
    simulator = Simulator(playback, math.inf, lambda *_: None)
    url = await simulator.start()
    publisher = RememberingPublisher()
    channels = ("ticker", "heartbeats", "market_trades", "candles", "level2")
    feed = Feed(url, channels, ("BTC-USD", "ETH-USD"), IngestSettings(), publisher, until_closed=True)  # pyright: ignore[reportArgumentType] - a double
    try:
        await asyncio.wait_for(feed.run(asyncio.Event()), 30)
    finally:
        await simulator.stop()
    assert (feed.counters.frames, feed.counters.gaps, feed.counters.repeats) == (1_030, 0, 0)
    assert dict(feed.counters.unknown_channels) == {}
    checkpoints = [event.detail for event in publisher.events("checkpoint")]
    assert (checkpoints[0]["from_sequence"], checkpoints[-1]["to_sequence"]) == (0, 1_029)
    frames: Counter[str] = Counter()
    for checkpoint in checkpoints:
        frames.update(checkpoint["frames"])
    assert frames == {
        "l2_data": 775,
        "ticker": 160,
        "market_trades": 59,
        "heartbeats": 25,
        "candles": 6,
        "subscriptions": 5,
    }
    assert len(publisher.ticks) == 160
    assert len(publisher.events("subscribed")) == 5


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        (
            "faulty_every_line_twice.ndjson.gz",
            {"lines": 7_156, "ticks": 7_156, "kept": 3_578, "duplicates": 3_578, "missing": 0, "rows": 3_600},
        ),
        (
            "faulty_heartbeats_dropped.ndjson.gz",
            {"lines": 2_500, "ticks": 2_500, "kept": 2_500, "duplicates": 0, "missing": 665, "rows": 7_200},
        ),
    ],
)
def test_flattened_lines_cannot_be_played_but_are_replayed(
    recordings: Path, tmp_path: Path, name: str, counts: dict[str, int]
) -> None:
    refused = CliRunner().invoke(main, ["simulate", "--recording", str(recordings / name), "--once"])
    assert refused.exit_code == 1
    assert refused.stderr == (
        f"Error: {recordings / name}: flattened ticker lines are not the exchange's frames\n"
    )
    found, rows = replayed(tmp_path / "rows.parquet", [recordings / name])
    assert {count: found[count] for count in counts} == counts
    assert (found["unreadable"], found["late"], found["rejected"]) == (0, 0, 0)
    assert len(rows) == counts["rows"]
