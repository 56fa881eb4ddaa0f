"""Progress of a running featurizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from cryptovol_dagster.core.features.live_rows import LiveRows


@dataclass(frozen=True)
class LiveStarted:
    """Addresses and topics, reported once the topics can be read."""

    bootstrap_servers: str
    topic: str
    out: str
    feature_version: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"event": "started", **asdict(self)}


@dataclass
class LiveProgress:
    """Counts so far.

    Attributes:
        rows: rows published for the first time.
        revisions: rows published again because they changed.
        provisional: rows published in a gap, or while the feed was silent.
        known: rows an earlier run had published, computed again and equal.
        ticks: ticker entries read from Kafka.
        trades: trades read from Kafka.
        unreadable: unreadable records on ticks.raw and trades.raw (raw storage keeps them).
        late: ticks left out as too late for their product.
        duplicates: ticks left out as repeats.
        rejected: ticks left out without a usable quote.
        beyond_reach: ticks and trades that came too late to revise their seconds.
        restarts: how often another recording began: event time went back, or far ahead.
        products: products followed.
        newest_bar_end_ns: end of the newest bar published.
        behind_s: distance from there to the feed's time.
        recovered: by partition, where it resumed.
    """

    rows: int = 0
    revisions: int = 0
    provisional: int = 0
    known: int = 0
    ticks: int = 0
    trades: int = 0
    unreadable: int = 0
    late: int = 0
    duplicates: int = 0
    rejected: int = 0
    beyond_reach: int = 0
    restarts: int = 0
    products: tuple[str, ...] = ()
    newest_bar_end_ns: int | None = None
    behind_s: float | None = None
    recovered: dict[int, dict[str, Any]] = field(default_factory=dict)

    def count(self, rows: LiveRows, news: LiveRows) -> None:
        """Count rows that are ready.

        Args:
            rows: all of them, at least one.
            news: those that are new or changed, and therefore published.
        """
        revisions = int((news.revision > 0).sum())
        self.known += len(rows) - len(news)
        self.rows += len(news) - revisions
        self.revisions += revisions
        self.provisional += int(news.provisional.sum())
        self.newest_bar_end_ns = max(int(rows.bar_end_ns.max()), self.newest_bar_end_ns or 0)

    @property
    def revised_share(self) -> float:
        """Revisions per row."""
        return self.revisions / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class LiveSummary:
    """Result of a run: reason of the end, duration, and the counts of `LiveProgress`."""

    ended: str
    seconds: float
    progress: LiveProgress
    out: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "event": "summary",
            "ended": self.ended,
            "seconds": round(self.seconds, 3),
            **asdict(self.progress),
            "revised_share": round(self.progress.revised_share, 6),
            "out": self.out,
        }
