"""Progress of a running scorer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from ingestor.envelope import ScoreMessage


class Pulse(NamedTuple):
    """State of an active scorer, once a second.

    Attributes:
        now_ns: wall clock.
        heard_at_ns: wall clock when the last row, or report of a closing, came.
        chain: whose champion.
        trained_until_ns: end of the champion's training, as long before `now_ns` as it is before the newest
            bar; None without a champion.
    """

    now_ns: int
    heard_at_ns: int
    chain: str
    trained_until_ns: int | None


@dataclass(frozen=True)
class ScorerStarted:
    """Addresses and topics, reported once the topics can be read."""

    bootstrap_servers: str
    topic: str
    chain: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"event": "started", **asdict(self)}


@dataclass
class ScorerProgress:
    """Counts so far.

    Attributes:
        bars: bars of products, each counted once.
        revisions: scores published again because they changed.
        by_reason: first scores by reason; ``ok`` are those with a probability.
        flagged: first scores at or above the operating point.
        changes: how often another model became the one that scores.
        refused: how often a model was refused.
        unreadable: records of ticks.features that are not rows.
        other_features: rows of another version of the features.
        champion: the model that scores, in words; None without one.
        newest_bar_end_ns: end of the newest bar scored.
        rows_kept: rows kept for revisions.
        others: counts of the chains of the minutes, by name.
        is_active: whether this instance scores; another one does where it is a standby.
    """

    bars: int = 0
    revisions: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    changes: int = 0
    refused: int = 0
    unreadable: int = 0
    other_features: int = 0
    champion: str | None = None
    newest_bar_end_ns: int | None = None
    rows_kept: int = 0
    others: dict[str, ScorerProgress] = field(default_factory=dict)
    is_active: bool = False

    def count_others(self, messages: Iterable[ScoreMessage]) -> None:
        """Count messages of the minutes by their chains."""
        for message in messages:
            self.others.setdefault(message.chain, ScorerProgress()).count([message])

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; of the minutes those that are counted by scores."""
        counts = asdict(replace(self, others={})) | {"by_reason": dict(self.by_reason)}
        names = ("bars", "revisions", "by_reason", "flagged", "newest_bar_end_ns")
        others = {chain: each.as_dict() for chain, each in self.others.items()}
        return counts | {
            "others": {chain: {name: each[name] for name in names} for chain, each in others.items()}
        }

    def count(self, messages: Iterable[ScoreMessage]) -> None:
        """Count messages that are published."""
        for message in messages:
            if message.revision:
                self.revisions += 1
                continue
            self.bars += 1
            self.by_reason[message.reason] += 1
            self.flagged += bool(message.flag)
            self.newest_bar_end_ns = max(message.bar_end_ns, self.newest_bar_end_ns or 0)


@dataclass(frozen=True)
class ScorerSummary:
    """Result of a run: reason of the end, duration, and the counts of `ScorerProgress`."""

    ended: str
    seconds: float
    progress: ScorerProgress

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        counts = self.progress.as_dict()
        return {"event": "summary", "ended": self.ended, "seconds": round(self.seconds, 3), **counts}
