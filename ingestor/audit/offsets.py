"""Offsets: contiguous in every partition of every log, or recorded as lost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ingestor.archive.layout import OffsetGap
from ingestor.archive.reader import RawFile, RawReader
from ingestor.audit.findings import Audit, Finding, Loss, PartitionOffsets
from ingestor.times import HOUR_NS, hour_from_key, hour_key

EVER_NS = 2**62
#: Read around the span: what belongs together may have event times on both sides of its ends.
CONTEXT_NS = HOUR_NS


@dataclass
class LostOffsets:
    """Offsets that the broker lost, and how many sequence numbers they may still explain.

    Attributes:
        topic: name without prefix.
        log_id: identity of the log.
        partition: the partition.
        first_offset: first one lost.
        last_offset: last one lost.
        reason: why.
        start_ns: event time of the last record stored before them; 0 where nothing is.
        end_ns: event time of the first one after; `EVER_NS` where nothing is.
        left: records that explain nothing yet.
    """

    topic: str
    log_id: str
    partition: int
    first_offset: int
    last_offset: int
    reason: str
    start_ns: int
    end_ns: int
    left: int

    def as_loss(self) -> Loss:
        """Return the row of the gap ledger."""
        detail = {
            name: getattr(self, name)
            for name in ("topic", "log_id", "partition", "first_offset", "last_offset", "reason")
        }
        count = self.last_offset - self.first_offset + 1
        start_ns = self.start_ns or self.end_ns
        end_ns = start_ns if self.end_ns == EVER_NS else self.end_ns
        return Loss("", "offsets", None, None, count, start_ns, end_ns, detail)

    def explain(self, count: int, start_ns: int, end_ns: int) -> int:
        """Explain `count` records lost in a span of event time, as far as it has that many."""
        if start_ns > self.end_ns or end_ns < self.start_ns:
            return 0
        taken = min(count, self.left)
        self.left -= taken
        return taken


def partition_offsets(
    reader: RawReader, topic: str, files: Sequence[RawFile]
) -> Iterator[tuple[PartitionOffsets, list[Finding]]]:
    """Compare the offsets of neighbouring files, partition by partition.

    Args:
        reader: of the same storage; for recorded gaps, and for files elsewhere that fill a hole.
        topic: name without prefix.
        files: result of `RawReader.files` for the span.
    """
    recorded = reader.offset_gaps(topic)
    elsewhere: list[RawFile] | None = None
    for (log_id, partition), group in itertools.groupby(files, _log):
        own = list(group)
        known = [
            (gap.first_offset, gap.last_offset) for gap in recorded if _gap_log(gap) == (log_id, partition)
        ]
        lost = missing = 0
        findings: list[Finding] = []
        for before, after in itertools.pairwise(own):
            hole = before.footer.last_offset + 1, after.footer.first_offset - 1
            if hole[0] > hole[1]:
                continue
            in_gaps = _covered(hole, known)
            if in_gaps < hole[1] - hole[0] + 1:
                # Rows of another time may have offsets between two files of this span.
                elsewhere = reader.files(topic, 0, EVER_NS) if elsewhere is None else elsewhere
                others = [
                    (file.footer.first_offset, file.footer.last_offset)
                    for file in elsewhere
                    if _log(file) == (log_id, partition)
                ]
                absent = hole[1] - hole[0] + 1 - _covered(hole, sorted(known + others))
                missing += absent
                if absent:
                    findings.append(_missing(topic, before, after, hole, absent))
            lost += in_gaps
        yield (
            PartitionOffsets(
                topic=topic,
                log_id=log_id,
                partition=partition,
                first_offset=own[0].footer.first_offset,
                last_offset=own[-1].footer.last_offset,
                files=len(own),
                lost=lost,
                missing=missing,
            ),
            findings,
        )


def recorded_losses(reader: RawReader, topic: str, files: Sequence[RawFile]) -> list[LostOffsets]:
    """Return the recorded offset gaps that touch the files' span, with the event times around them."""
    losses = []
    for gap in reader.offset_gaps(topic):
        own = [file for file in files if _log(file) == _gap_log(gap)]
        before = [file.footer.max_time_ns for file in own if file.footer.last_offset < gap.first_offset]
        after = [file.footer.min_time_ns for file in own if file.footer.first_offset > gap.last_offset]
        if not before and not after:
            continue  # of another time, or of a partition of which nothing is stored
        losses.append(
            LostOffsets(
                topic=topic,
                log_id=gap.log_id,
                partition=gap.partition,
                first_offset=gap.first_offset,
                last_offset=gap.last_offset,
                reason=gap.reason,
                start_ns=before[-1] if before else 0,
                end_ns=after[0] if after else EVER_NS,
                left=gap.last_offset - gap.first_offset + 1,
            )
        )
    return losses


def add_offsets(reader: RawReader, result: Audit, start_ns: int, end_ns: int, topic: str) -> Audit:
    """Add the offsets of a topic outside the feed to an audit; where nothing is stored, nothing is added.

    Args:
        reader: of the storage.
        result: the audit so far.
        start_ns: first event time.
        end_ns: event time at which to stop.
        topic: name without prefix.

    Raises:
        ArchiveError: a file is foreign or corrupt.
    """
    files = reader.files(topic, start_ns - CONTEXT_NS, end_ns + CONTEXT_NS)
    offsets, findings = [*result.offsets], [*result.findings]
    for partition, found in partition_offsets(reader, topic, files):
        offsets.append(partition)
        findings += [one for one in found if start_ns - HOUR_NS < hour_from_key(one.hour) < end_ns]
    losses = [lost.as_loss() for lost in recorded_losses(reader, topic, files)]
    inside = [loss for loss in losses if start_ns <= loss.end_ns < end_ns]
    return replace(
        result,
        losses=tuple(sorted([*result.losses, *inside], key=lambda loss: loss.end_ns)),
        offsets=tuple(offsets),
        findings=tuple(sorted(findings, key=lambda one: one.hour)),
    )


def _missing(topic: str, before: RawFile, after: RawFile, hole: tuple[int, int], absent: int) -> Finding:
    partition = after.footer.partition
    return Finding(
        kind="offsets",
        hour=hour_key(after.footer.min_time_ns),
        where=f"{topic} {after.footer.log_id} partition {partition}",
        count=absent,
        text=f"{topic} partition {partition}: expected {after.path.name} to begin at offset {hole[0]}, found "
        f"{after.footer.first_offset}: {absent} offsets are missing after {before.path.name}",
    )


def _covered(hole: tuple[int, int], ranges: Iterable[tuple[int, int]]) -> int:
    """Return how many offsets of `hole` are in some of the ascending ranges."""
    covered, at = 0, hole[0]
    for first, last in ranges:
        first, last = max(first, at), min(last, hole[1])
        if first <= last:
            covered += last - first + 1
            at = last + 1
    return covered


def _log(file: RawFile) -> tuple[str, int]:
    return file.footer.log_id, file.footer.partition


def _gap_log(gap: OffsetGap) -> tuple[str, int]:
    return gap.log_id, gap.partition
