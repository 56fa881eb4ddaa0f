"""Connection of each frame, and missing sequence numbers."""

from __future__ import annotations

from ingestor.exchange.sequence import Gap, SequenceTracker, Verdict
from ingestor.recordings.arrays import RecordingCounts


class Connection:
    """One connection inside a recording.

    Attributes:
        code: Its index in the recording.
        gaps: Breaks of its sequence so far.
    """

    __slots__ = ("_gaps_at_entry", "code", "gaps", "newest_ns", "tracker")

    def __init__(self, code: int) -> None:
        self.code = code
        self.gaps = 0
        self.newest_ns = 0
        self.tracker = SequenceTracker()
        self._gaps_at_entry: dict[str, int] = {}

    def gap_before(self, product: str) -> bool:
        """Return whether a gap precedes this entry since the product's last one; call once per entry."""
        before = self._gaps_at_entry.get(product)
        if before == self.gaps:
            return False
        self._gaps_at_entry[product] = self.gaps
        return before is not None


class ConnectionLog:
    """Follows the frames of a recording from connection to connection, counting gaps and repeats."""

    def __init__(self, stem: str, counts: RecordingCounts) -> None:
        self._stem = stem
        self._counts = counts
        self._names: list[str] = []
        self._named: dict[str, Connection] = {}
        self._current: Connection | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the connections so far, by code."""
        return tuple(self._names)

    def unnumbered(self) -> Connection:
        """Return the connection of a frame without a sequence number: the present one."""
        return self._current or self._open(None)

    def observe(self, sequence_num: int, time_ns: int) -> Connection:
        """Judge the next frame of a recording that does not name its connections."""
        connection = self._current
        if connection is None:
            return self._first(self._open(None), sequence_num, time_ns, holds_opening=False)
        verdict = connection.tracker.observe(sequence_num)
        if verdict is Verdict.OK:
            connection.newest_ns = time_ns
        elif isinstance(verdict, Gap):
            self._gap(connection, verdict)
            connection.newest_ns = time_ns
        elif time_ns > connection.newest_ns or (sequence_num == 0 and connection.tracker.newest > 0):
            # The numbers fell back while time went on: a repeated frame would carry its old time.
            return self._first(self._open(None), sequence_num, time_ns, holds_opening=True)
        else:
            self._counts.repeats += 1
        return connection

    def observe_named(self, name: str, sequence_num: int, *, holds_opening: bool) -> Connection:
        """Judge the next frame of a recording that names its connections."""
        connection = self._named.get(name)
        if connection is None:
            connection = self._named[name] = self._open(name)
            return self._first(connection, sequence_num, 0, holds_opening=holds_opening)
        verdict = connection.tracker.observe(sequence_num)
        if isinstance(verdict, Gap):
            self._gap(connection, verdict)
        elif verdict is Verdict.REPEAT:
            self._counts.repeats += 1
        return connection

    def _open(self, name: str | None) -> Connection:
        connection = self._current = Connection(len(self._names))
        self._names.append(name or f"{self._stem}#{connection.code + 1}")
        return connection

    def _first(
        self, connection: Connection, sequence_num: int, time_ns: int, *, holds_opening: bool
    ) -> Connection:
        # A recording that was cut out of a longer one begins anywhere; one that holds the opening begins at
        # 0.
        verdict = connection.tracker.observe(sequence_num)
        if holds_opening and isinstance(verdict, Gap):
            self._gap(connection, verdict)
        connection.newest_ns = time_ns
        return connection

    def _gap(self, connection: Connection, gap: Gap) -> None:
        self._counts.gaps += 1
        self._counts.missing += gap.count
        connection.gaps += 1
