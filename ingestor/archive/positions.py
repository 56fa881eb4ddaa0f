"""Where to go on reading, according to raw storage alone: one past the last stored offset of each partition.

Names carry the first offset, so the newest file of a partition is found by name and only its footer is read.
(Compaction must therefore delete replaced files oldest first.)
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from ingestor.archive.errors import ArchiveError, CollisionError
from ingestor.archive.layout import GAPS, FileName, OffsetGap, files_in, hour_folders, read_footer
from ingestor.archive.writer import write_exclusively
from ingestor.errors import first_line


def stored_offsets(raw_dir: Path, topic: str, log_id: str) -> dict[int, int]:
    """Return the next offset to read of each partition of a log with stored records.

    Recorded gaps count as stored: the broker no longer has those offsets.

    Raises:
        ArchiveError: a file of the folder is foreign or corrupt.
    """
    newest: dict[int, tuple[FileName, list[Path]]] = {}
    for _, folder in hour_folders(raw_dir / topic):
        for name, path in files_in(folder):
            known, paths = newest.get(name.partition, (name, []))
            if name.log_id == log_id and name >= known:
                # A conversion in place may have left one name in both formats.
                newest[name.partition] = (name, [path] if name > known else [*paths, path])
    offsets = {
        partition: max(read_footer(path).last_offset for path in paths) + 1
        for partition, (_, paths) in newest.items()
    }
    for gap in offset_gaps(raw_dir, topic):
        if gap.log_id == log_id:
            offsets[gap.partition] = max(offsets.get(gap.partition, 0), gap.last_offset + 1)
    return offsets


def resume_at(
    raw_dir: Path, topic: str, log_id: str, partition: int, stored: int | None, log: tuple[int, int]
) -> int:
    """Return the next offset to read, and record the offsets that the log lost.

    Args:
        raw_dir: root of raw storage.
        topic: name without prefix.
        log_id: identity of the log.
        partition: the partition.
        stored: the next offset by `stored_offsets`; None where nothing is stored.
        log: first offset that the log still has, and the one its next record will get.

    Raises:
        ArchiveError: storage contains offsets that the log has not assigned yet.
        CollisionError: another writer stored this offset meanwhile.
    """
    start, end = log
    if stored is None or stored == start:
        return start
    if stored > end:
        raise ArchiveError(
            f"raw storage contains {topic} partition {partition} up to offset {stored - 1}, but the broker's "
            f"log {log_id} ends at {end - 1}: the broker lost data, or {raw_dir} belongs to another broker"
        )
    if stored < start:
        record_gap(raw_dir, topic, log_id, partition, stored, start, "deleted by the broker's retention")
        return start
    return stored


def record_gap(
    raw_dir: Path, topic: str, log_id: str, partition: int, first: int, end: int, reason: str
) -> None:
    """Record that the offsets ``[first, end)`` cannot be read any more.

    Raises:
        CollisionError: another writer recorded a gap from `first` on.
    """
    gap = OffsetGap(
        topic=topic,
        log_id=log_id,
        partition=partition,
        first_offset=first,
        last_offset=end - 1,
        reason=reason,
        found_at_ns=time.time_ns(),
    )
    path = raw_dir / topic / GAPS / f"{FileName(log_id, partition, first)}.json"
    write_exclusively(raw_dir / topic, path, msgspec.json.encode(gap))


def record_end(raw_dir: Path, topic: str, log_id: str, partition: int, end: int, reason: str) -> bool:
    """Record offsets of a deleted log before `end` that were not stored; return whether there were any."""
    first = stored_offsets(raw_dir, topic, log_id).get(partition, 0)
    if first >= end:
        return False
    try:
        record_gap(raw_dir, topic, log_id, partition, first, end, reason)
    except CollisionError:
        return False  # another archive recorded it
    return True


def offset_gaps(raw_dir: Path, topic: str) -> list[OffsetGap]:
    """Return every recorded offset gap of a topic, ordered by log, partition and offset.

    Raises:
        ArchiveError: a record cannot be read.
    """
    gaps: list[OffsetGap] = []
    for path in sorted((raw_dir / topic / GAPS).glob("*.json")):
        try:
            gaps.append(msgspec.json.decode(path.read_bytes(), type=OffsetGap))
        except (msgspec.MsgspecError, OSError) as error:
            raise ArchiveError(f"{path} cannot be read: {first_line(error)}") from error
    return gaps
