"""Results of an audit: lines of a table, losses (the gap ledger), offsets, and unaccounted numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ingestor.times import hour_key

LossKind = Literal["sequence", "in_flight", "between", "offsets"]
FindingKind = Literal["checkpoint", "tail", "offsets", "seal"]


@dataclass(frozen=True)
class Loss:
    """A row of the gap ledger: a known loss.

    Attributes:
        connection_id: the connection of the loss, or the one after it; empty for `offsets`.
        kind: ``sequence`` (numbers that never came, reported by the feed), ``in_flight`` (numbers after the
            last checkpoint of a recorder that was killed, at least), ``between`` (from one connection to the
            next), ``offsets`` (records that the broker lost before they were stored).
        from_sequence: first number lost; None where numbers do not apply.
        to_sequence: last number lost, inclusive.
        count: numbers (or offsets) lost; None where unknown.
        start_ns: event time of the last thing known before.
        end_ns: event time of the first thing known after.
        detail: further facts, as plain values.
    """

    connection_id: str
    kind: LossKind
    from_sequence: int | None
    to_sequence: int | None
    count: int | None
    start_ns: int
    end_ns: int
    detail: dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """Something that nothing accounts for.

    Attributes:
        kind: which rule it breaks.
        hour: ``YYYY-MM-DD-HH:00``, UTC.
        where: connection, or topic and partition.
        count: numbers, offsets or rows concerned.
        text: one line: expected, found, and where.
    """

    kind: FindingKind
    hour: str
    where: str
    count: int
    text: str


@dataclass
class Line:
    """Numbers of one connection in one hour, by outcome; counts of distinct sequence numbers.

    Attributes:
        hour_ns: start of the hour.
        connection_id: the connection.
        stored: with an entry in ticks.raw or trades.raw.
        control: checkpointed frames without an entry: acknowledgements, heartbeats, empty and unknown ones.
        dead: in feed.dead.
        in_gaps: in the gap ledger.
        unconfirmed: after the last checkpoint of a connection that may still run.
        unaccounted: none of these.
    """

    hour_ns: int
    connection_id: str
    stored: int = 0
    control: int = 0
    dead: int = 0
    in_gaps: int = 0
    unconfirmed: int = 0
    unaccounted: int = 0

    @property
    def frames(self) -> int:
        """All numbers."""
        return self.stored + self.control + self.dead + self.in_gaps + self.unconfirmed + self.unaccounted

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        values = asdict(self)
        return {"hour": hour_key(values.pop("hour_ns")), "frames": self.frames, **values}


@dataclass(frozen=True)
class PartitionOffsets:
    """The offsets stored of one partition of one log.

    Attributes:
        topic: name without prefix.
        log_id: identity of the log.
        partition: the partition.
        first_offset: first one stored.
        last_offset: last one stored.
        files: raw files.
        lost: offsets between them that are recorded as lost.
        missing: offsets between them of which nothing is known.
    """

    topic: str
    log_id: str
    partition: int
    first_offset: int
    last_offset: int
    files: int
    lost: int
    missing: int


@dataclass(frozen=True)
class SealState:
    """State of a closed hour compared with its seal.

    Attributes:
        hour: its key.
        state: ``unchanged``, ``changed``, or ``not sealed`` (closed by an earlier version).
        late_rows: rows that came after it closed; the sealed rows are unchanged.
        revision: how often it was closed again with such rows.
        collection: ``feed`` or ``scores``: hours of scores close for themselves.
    """

    hour: str
    state: Literal["unchanged", "changed", "not sealed"]
    late_rows: int = 0
    revision: int = 0
    collection: str = "feed"


@dataclass(frozen=True)
class Audit:
    """An audit of a span of raw storage.

    Attributes:
        hours: keys of the hours with records, oldest first.
        lines: by hour and connection.
        losses: the gap ledger of the span, by time.
        offsets: by topic, log and partition.
        seals: of the closed hours, oldest first.
        findings: unaccounted numbers and offsets; empty where everything is accounted for.
    """

    hours: tuple[str, ...]
    lines: tuple[Line, ...]
    losses: tuple[Loss, ...]
    offsets: tuple[PartitionOffsets, ...]
    seals: tuple[SealState, ...]
    findings: tuple[Finding, ...]

    def total(self, name: str) -> int:
        """Return the sum of a column of the table."""
        return sum(getattr(line, name) for line in self.lines)

    @property
    def verdict(self) -> str:
        """Return one line: everything is accounted for, or what is not."""
        if not self.findings:
            pending = self.total("unconfirmed")
            rest = f"; {pending:,} not confirmed yet" if pending else ""
            return f"every one of {self.total('frames'):,} sequence numbers is accounted for{rest}"
        first, others = self.findings[0], len(self.findings) - 1
        more = f" (and {others} more)" if others else ""
        return f"unaccounted for: {first.text}{more}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "hours": list(self.hours),
            "table": [line.as_dict() for line in self.lines],
            "totals": {name: self.total(name) for name in COUNTS},
            "gap_ledger": [asdict(loss) for loss in self.losses],
            "offsets": [asdict(one) for one in self.offsets],
            "seals": [asdict(one) for one in self.seals],
            "findings": [asdict(finding) for finding in self.findings],
            "verdict": self.verdict,
            "accounted": not self.findings,
        }


#: Columns of the table, in order.
COUNTS: Sequence[str] = (
    "frames", "stored", "control", "dead", "in_gaps", "unconfirmed", "unaccounted",
)  # fmt: skip
