"""Seals: closed hours are compared with their stored rows."""

from __future__ import annotations

from dataclasses import replace

from ingestor.archive.collection import Collection
from ingestor.archive.reader import RawReader
from ingestor.archive.seal import differences
from ingestor.audit.findings import Audit, Finding, SealState
from ingestor.times import HOUR_NS, hour_from_key


def add_seals(reader: RawReader, result: Audit, start_ns: int, end_ns: int, collection: Collection) -> Audit:
    """Add the state of a collection's closed hours to an audit.

    Args:
        reader: of the storage.
        result: the audit so far.
        start_ns: first event time.
        end_ns: event time at which to stop.
        collection: whose hours.

    Raises:
        ArchiveError: a file is foreign or corrupt.
    """
    states: list[SealState] = []
    findings = list(result.findings)
    for hour in reader.closed_hours(closed=collection.closed):
        hour_ns = hour_from_key(hour.hour)
        if not (start_ns < hour_ns + HOUR_NS and hour_ns < end_ns):
            continue
        if not hour.seals:
            states.append(SealState(hour.hour, "not sealed", collection=collection.name))
            continue
        late_rows, different = 0, {}
        # A revision adds rows to a seal, it excuses nothing.
        for record in reader.closings(hour.hour, closed=collection.closed):
            late_rows, found = differences(reader, record)
            different = {where: (rows, text) for where, rows, text in found} | different
        state = "changed" if different else "unchanged"
        states.append(SealState(hour.hour, state, hour.late_rows + late_rows, hour.revision, collection.name))
        findings += [
            Finding("seal", hour.hour, where, rows, f"{hour.hour}, {where}: {text}")
            for where, (rows, text) in different.items()
        ]
    findings.sort(key=lambda one: one.hour)
    return replace(result, seals=(*result.seals, *states), findings=tuple(findings))
