"""The numbers of one connection, hour by hour: stored numbers compared with those of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ingestor.audit.findings import Finding, FindingKind, Line, Loss
from ingestor.envelope import DEAD, EVENTS, TICKS, TRADES
from ingestor.exchange.messages import TICKER
from ingestor.exchange.messages import TRADES as TRADES_CHANNEL
from ingestor.times import hour_key, hour_start

Numbers = npt.NDArray[np.int64]
#: (topics, count, start_ns, end_ns) → how many of the numbers offsets lost in that span explain.
Explain = Callable[[tuple[str, ...], int, int, int], int]
DATA_TOPICS = (TICKS, TRADES)


@dataclass(frozen=True)
class Checkpoint:
    """The feed's account of the numbers ``[from_sequence, to_sequence]`` of a connection.

    Attributes:
        from_sequence: first number.
        to_sequence: last number, inclusive.
        readable: frames that could be read.
        data: those of them with an entry in ticks.raw or trades.raw.
        empty: frames of those channels without one.
        dead: frames in feed.dead.
        missing: numbers reported as gaps.
        time_ns: newest event time up to it.
        is_stored: whether everything it promises can be stored by now.
    """

    from_sequence: int
    to_sequence: int
    readable: int
    data: int
    empty: int
    dead: int
    missing: int
    time_ns: int
    is_stored: bool

    @classmethod
    def read(cls, detail: Mapping[str, Any], time_ns: int, is_stored: bool) -> Checkpoint:
        """Read a checkpoint's detail.

        Raises:
            KeyError, TypeError: it is not of a checkpoint.
        """
        frames, empty = detail["frames"], detail["empty_frames"]
        return cls(
            from_sequence=detail["from_sequence"],
            to_sequence=detail["to_sequence"],
            readable=sum(frames.values()),
            data=frames.get(TICKER, 0) + frames.get(TRADES_CHANNEL, 0) - empty,
            empty=empty,
            dead=detail["dead_frames"],
            missing=detail["missing"],
            time_ns=time_ns,
            is_stored=is_stored,
        )

    @property
    def width(self) -> int:
        """Number of its sequence numbers."""
        return self.to_sequence - self.from_sequence + 1


class ConnectionAccount:
    """Accounts for the numbers of one connection. Call `take` for each hour in order, then `finish`.

    Args:
        connection_id: the connection.
        dead: numbers of its dead letters, ascending, each once.
        explain: returns how many numbers are among the offsets that the broker lost.
    """

    def __init__(self, connection_id: str, dead: Numbers, explain: Explain) -> None:
        self.connection_id = connection_id
        self.lines: dict[int, Line] = {}
        self.losses: list[Loss] = []
        self.findings: list[Finding] = []
        #: Event times of the first and the last thing known of it.
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        #: The last number accounted for; None while the start of the span is unknown.
        self._edge: int | None = None
        self._edge_ns = 0
        self._dead = dead
        self._explain = explain
        self._numbers: Numbers = np.empty(0, np.int64)
        self._times: Numbers = np.empty(0, np.int64)
        self._gaps: list[tuple[int, int]] = []
        self._waiting: list[Checkpoint] = []

    def begin(self) -> None:
        """Record that its first number is in the span."""
        if self._edge is None and not self._waiting:
            self._edge = -1

    def take(
        self,
        hour_ns: int,
        numbers: Numbers,
        times: Numbers,
        gaps: list[tuple[int, int, int]],
        checkpoints: list[Checkpoint],
    ) -> None:
        """Process an hour: all stored numbers of the connection.

        Args:
            hour_ns: its start.
            numbers: sequence numbers with an entry, in any order, also several times.
            times: their event times.
            gaps: first and last missing number and event time of each reported gap.
            checkpoints: in order.
        """
        numbers, first = np.unique(numbers, return_index=True)
        times = times[first]
        if len(numbers):
            self._line(hour_ns).stored += len(numbers)
            self.seen(int(times.min()), int(times.max()))
            self._numbers, first = np.unique(np.concatenate([self._numbers, numbers]), return_index=True)
            self._times = np.concatenate([self._times, times])[first]
        for first_missing, last_missing, time_ns in gaps:
            if self._edge is None or last_missing > self._edge:  # else reported twice
                self._note_gap(first_missing, last_missing, time_ns)
        for checkpoint in checkpoints:
            self.seen(checkpoint.time_ns, checkpoint.time_ns)
            self._waiting.append(checkpoint)
        while self._waiting and self._waiting[0].is_stored:
            self._settle(self._waiting.pop(0))
        self._forget()

    def seen(self, first_ns: int, last_ns: int) -> None:
        """Extend the connection's known event times."""
        self.first_ns = first_ns if self.first_ns is None else min(self.first_ns, first_ns)
        self.last_ns = last_ns if self.last_ns is None else max(self.last_ns, last_ns)

    def finish(
        self, *, ended: bool, last_sequence: int | None, lost: bool, still_storing: bool, next_ns: int | None
    ) -> None:
        """Account for the numbers after the last checkpoint that is stored in full.

        Args:
            ended: the connection published `disconnected`.
            last_sequence: the last number it had then.
            lost: it did not, and will not any more.
            still_storing: an archive may still store the numbers of a checkpoint.
            next_ns: first event time of the next connection; None where there is none.
        """
        pending, self._waiting = self._waiting, []
        # A killed recorder's last messages wait in the broker for the next archive.
        if pending and (still_storing or not ended):
            self._leave_unconfirmed(pending[-1].to_sequence)
            return
        for checkpoint in pending:
            self._settle(checkpoint)
        edge = (
            self._edge if self._edge is not None else int(self._numbers[0]) - 1 if len(self._numbers) else -1
        )
        newest = max(
            [edge, *self._numbers[-1:].tolist(), *self._dead[-1:].tolist(), *(last for _, last in self._gaps)]
        )
        if last_sequence is not None:
            newest = max(newest, last_sequence)
        if not (ended or lost):
            self._leave_unconfirmed(newest)
            return
        missing = self._count_tail(edge, newest)
        if missing and ended:
            self._find("tail", missing, (edge + 1, newest), "a checkpoint or a stored entry of each", "none")
        elif missing:
            self._line_of_end().in_gaps += missing
            start_ns = self._edge_ns or self.first_ns or 0
            detail = {"note": "at least: numbers after the last known one cannot be counted"}
            end_ns = max(next_ns or 0, self.last_ns or start_ns)
            self.losses.append(
                Loss(self.connection_id, "in_flight", edge + 1, newest, missing, start_ns, end_ns, detail)
            )

    def _settle(self, checkpoint: Checkpoint) -> None:
        """Compare a checkpoint with the stored numbers of its window."""
        first, last = checkpoint.from_sequence, checkpoint.to_sequence
        if self._edge is not None and last <= self._edge:
            return  # reported twice
        window = (self._edge_ns, checkpoint.time_ns)
        hour_ns = hour_start(checkpoint.time_ns)
        line = self._line(hour_ns)
        if self._edge is not None and first > self._edge + 1:
            hole = self._edge + 1, first - 1
            absent = self._count_tail(self._edge, first - 1, line)
            absent -= self._excuse(line, (EVENTS,), absent, window, whole=True)
            if absent > 0:
                self._find("checkpoint", absent, hole, "a checkpoint over them", "none", hour_ns)
        stored, dead, in_gaps = self._inside(first, last)
        if checkpoint.readable + checkpoint.dead + checkpoint.missing != checkpoint.width:
            counted = checkpoint.readable + checkpoint.dead + checkpoint.missing
            self._find(
                "checkpoint",
                abs(checkpoint.width - counted),
                (first, last),
                f"{checkpoint.width} frames",
                f"a checkpoint over {counted}",
                hour_ns,
            )
        line.control += checkpoint.readable - checkpoint.data
        line.dead += min(dead, checkpoint.dead)
        line.in_gaps += min(in_gaps, checkpoint.missing)
        for topics, name, promised, found in (
            (DATA_TOPICS, "frames with entries", checkpoint.data, stored),
            ((DEAD,), "dead letters", checkpoint.dead, dead),
            ((EVENTS,), "numbers reported as gaps", checkpoint.missing, in_gaps),
        ):
            absent = promised - found
            absent -= self._excuse(line, topics, absent, window)
            if absent > 0:
                self._find("checkpoint", absent, (first, last), f"{promised} {name}", str(found), hour_ns)
        if stored > checkpoint.data:
            self._find(
                "checkpoint", 0, (first, last), f"{checkpoint.data} frames with entries", str(stored), hour_ns
            )
        self._edge, self._edge_ns = last, checkpoint.time_ns

    def _inside(self, first: int, last: int) -> tuple[int, int, int]:
        """Count the numbers of ``[first, last]`` that are stored, in dead letters only, and in gaps."""
        low, high = np.searchsorted(self._numbers, (first, last + 1))
        dead = self._dead[slice(*np.searchsorted(self._dead, (first, last + 1)))]
        in_gaps = sum(max(0, min(last, b) - max(first, a) + 1) for a, b in self._gaps)
        # An entry that cannot be read is a dead letter too; its frame may have others that are stored.
        only_dead = len(np.setdiff1d(dead, self._numbers[low:high], assume_unique=True))
        return int(high - low), only_dead, in_gaps

    def _count_tail(self, edge: int, newest: int, line: Line | None = None) -> int:
        """Return the missing numbers of ``(edge, newest]``; dead letters and reported gaps do not count."""
        if newest <= edge:
            return 0
        stored, dead, in_gaps = self._inside(edge + 1, newest)
        line = self._line_of_end() if line is None else line
        line.dead += dead
        line.in_gaps += in_gaps
        return newest - edge - stored - dead - in_gaps

    def _leave_unconfirmed(self, newest: int) -> None:
        edge = self._known_edge()
        newest = max([newest, *self._numbers[-1:].tolist()])
        self._line_of_end().unconfirmed += max(0, self._count_tail(edge, newest))

    def _known_edge(self) -> int:
        """Return the last number accounted for; without a checkpoint, the one before the first stored."""
        if self._edge is not None:
            return self._edge
        return int(self._numbers[0]) - 1 if len(self._numbers) else -1

    def _excuse(
        self,
        line: Line,
        topics: tuple[str, ...],
        absent: int,
        window: tuple[int, int],
        *,
        whole: bool = False,
    ) -> int:
        """Count the numbers whose offsets the broker lost; `whole`: one record explains all."""
        if absent <= 0:
            return 0
        explained = self._explain(topics, 1 if whole else absent, *window)
        if whole and explained:
            explained = absent
        line.in_gaps += explained
        return explained

    def _note_gap(self, first: int, last: int, time_ns: int) -> None:
        self._gaps.append((first, last))
        at = int(np.searchsorted(self._numbers, first))
        start_ns = int(self._times[at - 1]) if at else self._edge_ns or self.first_ns or time_ns
        self.seen(start_ns, time_ns)
        self.losses.append(
            Loss(
                self.connection_id,
                "sequence",
                first,
                last,
                last - first + 1,
                min(start_ns, time_ns),
                time_ns,
                {},
            )
        )

    def _find(
        self,
        kind: FindingKind,
        count: int,
        window: tuple[int, int],
        expected: str,
        found: str,
        hour_ns: int | None = None,
    ) -> None:
        line = self._line_of_end() if hour_ns is None else self._line(hour_ns)
        line.unaccounted += count
        hour = hour_key(line.hour_ns)
        self.findings.append(
            Finding(
                kind=kind,
                hour=hour,
                where=self.connection_id,
                count=count,
                text=f"{hour}, connection {self.connection_id}, sequence {window[0]} to {window[1]}: "
                f"expected {expected}, found {found}",
            )
        )

    def _line(self, hour_ns: int) -> Line:
        return self.lines.setdefault(hour_ns, Line(hour_ns, self.connection_id))

    def _line_of_end(self) -> Line:
        return self._line(hour_start(self.last_ns or self._edge_ns))

    def _forget(self) -> None:
        """Drop the numbers that are accounted for; the last of them is the time at which a gap began."""
        if self._edge is None or self._waiting:
            return
        keep = max(int(np.searchsorted(self._numbers, self._edge + 1)) - 1, 0)
        self._numbers, self._times = self._numbers[keep:], self._times[keep:]
        self._gaps = [gap for gap in self._gaps if gap[1] > self._edge]
