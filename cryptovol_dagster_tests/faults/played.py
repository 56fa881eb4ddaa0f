"""A short market with faults through the real commands, and holding what is stored against what was sent."""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptovol_dagster_tests.e2e.processes import cryptovol, environment, simulated
from ingestor.archive.reader import RawReader
from ingestor.envelope import DEAD, EVENTS, TICKS, TRADES
from ingestor.exchange.clock import ns_to_rfc3339, rfc3339_to_ns
from ingestor.settings import Settings
from ingestor.settings.sections import IngestSettings, StorageSettings
from ingestor.simulator.market import SyntheticMarket
from ingestor.simulator.playback import Playback
from ingestor.simulator.write import write_recording

EVER_NS = 2**62
NS = 1_000_000_000
START = "2026-04-04T03:00:00Z"
PRODUCTS = ("BTC-USD", "ETH-USD")
SEED = 7
#: Limits short enough for a test, long enough for a busy machine.
LIMITS = IngestSettings(
    frame_silence_s=2, heartbeat_silence_s=2, backoff_initial_s=0.01, backoff_max_s=2, max_frame_bytes=500_000
)


@dataclass(frozen=True)
class Played:
    """A market that was played to a recorder.

    Attributes:
        log: the recorder's stderr, by line.
        sent: what the simulator says it sent.
        summary: what the recorder says it came to.
        raw_dir: its raw storage.
        market: the same market without faults, as a recording.
    """

    log: list[str]
    sent: dict[str, Any]
    summary: dict[str, Any]
    raw_dir: Path
    market: Path

    def said(self, text: str) -> bool:
        """Whether a line of the log, without its time, holds `text`."""
        return any(text in line.partition(" ")[2] for line in self.log)

    def rows(self, topic: str) -> list[dict[str, Any]]:
        return RawReader(self.raw_dir).read(topic, 0, EVER_NS).to_pylist()

    @cached_property
    def stored(self) -> list[dict[str, Any]]:
        """Stored ticks."""
        return self.rows(TICKS)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Stored events of a kind, their details unpacked, in order."""
        found = [row | {"detail": json.loads(row["payload"])} for row in self.rows(EVENTS)]
        return sorted((row for row in found if row["kind"] == kind), key=lambda row: row["at_ns"])

    @cached_property
    def dead(self) -> list[tuple[str, bytes]]:
        """Reason and bytes of each dead letter."""
        return [(row["reason"], base64.b64decode(row["payload"])) for row in self.rows(DEAD)]

    def assert_every_number_is_accounted_for(self) -> None:
        """On each connection: every number is in a stored message, a checkpoint's counts, or missing."""
        stored: dict[str, set[int]] = {}
        for topic in (TICKS, TRADES):
            for row in self.rows(topic):
                stored.setdefault(row["connection_id"], set()).add(row["sequence_num"])
        spans: dict[str, list[dict[str, Any]]] = {}
        for event in self.events("checkpoint"):
            spans.setdefault(event["connection_id"], []).append(event["detail"])
        assert spans.keys() == {event["connection_id"] for event in self.events("disconnected")}
        for connection, checkpoints in spans.items():
            expected = 0
            for span in sorted(checkpoints, key=lambda span: span["from_sequence"]):
                assert span["from_sequence"] == expected
                expected = span["to_sequence"] + 1
                counted = sum(span["frames"].values()) + span["dead_frames"] + span["missing"]
                assert counted == expected - span["from_sequence"]
                with_entries = span["frames"].get("ticker", 0) + span["frames"].get("market_trades", 0)
                numbers = range(span["from_sequence"], expected)
                assert with_entries - span["empty_frames"] == len(stored[connection] & set(numbers))
        gaps = [event["detail"]["count"] for event in self.events("gap")]
        missing = [span["missing"] for checkpoints in spans.values() for span in checkpoints]
        assert sum(gaps) == sum(missing) == self.summary["feed"]["missing"]

    def lost(self) -> tuple[list[int], list[int]]:
        """Event times of the market's ticks that are not stored: in holes between connections, and others."""
        stored = Counter(_tick(json.loads(row["payload"])) for row in self.stored if _is_update(row))
        holes = self.holes()
        between, elsewhere = [], []
        for time_ns, tick in _ticks_of(self.market):
            if stored[tick]:
                stored[tick] -= 1
            elif any(first <= time_ns <= last for first, last in holes):
                between.append(time_ns)
            else:
                elsewhere.append(time_ns)
        assert not +stored, "ticks are stored that were never sent"
        return between, elsewhere

    def holes(self) -> list[tuple[int, int]]:
        """Event times between the end of a connection and the start of the next, as recorded."""
        resumed = {event["detail"]["previous_connection_id"]: event for event in self.events("resumed")}
        holes = []
        for ended in self.events("disconnected"):
            after = resumed.get(ended["connection_id"])
            if after is not None:
                last_ns = ended["event_time_ns"]
                # `resumed` is told with the first frame; its hole is what was not heard.
                assert after["detail"]["hole_ms"] == (after["event_time_ns"] - last_ns) // 1_000_000
                holes.append((last_ns, after["event_time_ns"]))
        return holes


def play(folder: Path, faults: str, *, hours: float = 0.02, speed: str = "max", start: str = START) -> Played:
    """Run `simulate` with a fault script and `ingest` against it, to the market's end."""
    settings = Settings(ingest=LIMITS, storage=StorageSettings(data_dir=folder / "data"))
    env = environment(settings, folder)
    without_faults = Playback(
        lambda: iter([SyntheticMarket(PRODUCTS, rfc3339_to_ns(start), SEED).segment(hours)])
    )
    write_recording(without_faults, PRODUCTS, folder / "market.ndjson")
    market = ("--hours", f"{hours}", "--start", start, "--products", ",".join(PRODUCTS), "--seed", f"{SEED}")
    with simulated(*market, "--speed", speed, "--faults", faults, "--once", env=env) as served:
        done = cryptovol("ingest", "--url", served.url, "--until-closed", "--json", env=env)
        assert done.returncode == 0, done.stderr
        sent = served.ended()
    return Played(
        log=done.stderr.splitlines(),
        sent=sent,
        summary=json.loads(done.stdout.splitlines()[-1]),
        raw_dir=settings.storage.raw_dir,
        market=folder / "market.ndjson",
    )


def ago(seconds: float, now_ns: int) -> str:
    """The whole second that was so long ago, as the simulator takes it."""
    return ns_to_rfc3339((now_ns - int(seconds * NS)) // NS * NS)


def _ticks_of(market: Path) -> list[tuple[int, str]]:
    """Event time and content of every update of a written market."""
    ticks = []
    for line in market.read_text().splitlines():
        frame = json.loads(line)["frame"]
        if frame["channel"] == "ticker":
            ticks += [
                (rfc3339_to_ns(frame["timestamp"]), _tick(entry))
                for event in frame["events"]
                if event["type"] == "update"
                for entry in event["tickers"]
            ]
    return ticks


def _is_update(row: dict[str, Any]) -> bool:
    return row["event_type"] == "update"


def _tick(entry: dict[str, Any]) -> str:
    """An entry without the fields that drift exchanges."""
    kept = {name: value for name, value in entry.items() if name not in ("volume_24_h", "simulated_field")}
    return json.dumps(kept, sort_keys=True)
