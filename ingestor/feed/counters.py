"""Counts of the feed since its start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: So many names are counted one by one, others together: a broken server may send any number of names.
MOST_NAMES = 100
OTHERS = "(others)"


def count_bounded(counted: Counter[str], name: str) -> str:
    """Count one more of `name`; returns the name it was counted under."""
    if name not in counted and len(counted) >= MOST_NAMES:
        name = OTHERS
    counted[name] += 1
    return name


def commonest(counted: Mapping[str, int]) -> str:
    """Return the most frequent names with counts, as text; empty without counts."""
    return max(counted, key=lambda name: counted[name], default="")


@dataclass
class FeedCounters:
    """Totals over all connections. `bytes` are those of the frames as received.

    Attributes:
        frames: frames that arrived, of any kind, repeats and unreadable ones included.
        missing: lost frames according to gaps.
        dead_letters: frames or entries that went to ``feed.dead``.
        reconnects: connections opened after the first.
        failed_attempts: connections that never opened.
        last_event_time_ns: newest event time accepted; 0 before the first.
        lag_ms: receiving time minus event time of the newest frame; months for a recording.
        unknown_channels: frames of unknown channels, by channel.
        drift: differences from the documented protocol that were kept, by name.
        dead_reasons: dead letters by the class of their reason.
    """

    frames: int = 0
    bytes: int = 0
    ticks: int = 0
    trades: int = 0
    gaps: int = 0
    missing: int = 0
    repeats: int = 0
    dead_letters: int = 0
    errors: int = 0
    connections: int = 0
    reconnects: int = 0
    failed_attempts: int = 0
    checkpoints: int = 0
    last_event_time_ns: int = 0
    lag_ms: float = 0.0
    unknown_channels: Counter[str] = field(default_factory=Counter)
    drift: Counter[str] = field(default_factory=Counter)
    dead_reasons: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        # asdict would take a Counter apart into pairs and count those.
        names = ("unknown_channels", "drift", "dead_reasons")
        return {**asdict(self), **{name: dict(getattr(self, name)) for name in names}}
