"""A real recording, read here with nothing of ours, to hold raw storage against."""

from __future__ import annotations

import calendar
import gzip
import json
import time
from pathlib import Path
from typing import NamedTuple

from ingestor.archive.reader import RawReader
from ingestor.envelope import TICKS

EVER_NS = 2**62


class Tick(NamedTuple):
    """What makes a tick that tick."""

    product: str
    event_time_ns: int
    bid: float
    ask: float


def ticks_of_recording(path: Path) -> list[Tick]:
    """Every ticker entry of a `{received_at, frame}` recording, in recorded order."""
    ticks = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            frame = json.loads(line)["frame"]
            if frame["channel"] == "ticker":
                ticks += [
                    Tick(
                        entry["product_id"],
                        _nanoseconds(frame["timestamp"]),
                        float(entry["best_bid"]),
                        float(entry["best_ask"]),
                    )
                    for event in frame["events"]
                    for entry in event["tickers"]
                ]
    return ticks


def ticks_of_raw_storage(raw_dir: Path) -> list[Tick]:
    """Every stored tick of one connection, in the order in which the exchange numbered them."""
    table = RawReader(raw_dir).read(TICKS, 0, EVER_NS)
    assert len(table["connection_id"].unique()) == 1
    columns = ("product_id", "event_time_ns", "best_bid", "best_ask")
    table = table.sort_by([(name, "ascending") for name in ("sequence_num", "event_index", "entry_index")])
    return [Tick(*row) for row in zip(*(table[name].to_pylist() for name in columns), strict=True)]


def _nanoseconds(timestamp: str) -> int:
    seconds, _, fraction = timestamp.removesuffix("Z").partition(".")
    whole = calendar.timegm(time.strptime(seconds, "%Y-%m-%dT%H:%M:%S"))
    return whole * 1_000_000_000 + int(fraction.ljust(9, "0"))
