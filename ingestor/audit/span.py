"""Which hours to audit, and whether an archive is still at work on them."""

from __future__ import annotations

from pathlib import Path

from ingestor.archive.collection import ARCHIVED_TOPICS
from ingestor.archive.member_name import archive_runs
from ingestor.archive.reader import RawReader
from ingestor.audit.errors import AuditError
from ingestor.times import HOUR_NS, hour_from_key, hour_key


def stored_span(
    raw_dir: Path, from_key: str | None, to_key: str | None
) -> tuple[RawReader, int | None, int | None, bool]:
    """Return a reader, the span of event time to audit (None: no bound), and whether an archive runs.

    Args:
        raw_dir: root of raw storage.
        from_key: first hour, ``YYYY-MM-DD-HH:00``.
        to_key: last hour, inclusive.

    Raises:
        AuditError: nothing is stored (in these hours), or a key is not an hour.
    """
    reader = RawReader(raw_dir)
    start_ns, end_ns = (None if key is None else _hour(key) for key in (from_key, to_key))
    end_ns = None if end_ns is None else end_ns + HOUR_NS
    if start_ns is not None and end_ns is not None and start_ns >= end_ns:
        raise AuditError(f"--from {from_key} is after --to {to_key}")
    hours = sorted({hour for topic in ARCHIVED_TOPICS for hour in reader.hours(topic)})
    if not hours:
        raise AuditError(f"{raw_dir}: raw storage is empty: nothing to audit")
    if not any((start_ns or 0) <= hour and (end_ns is None or hour < end_ns) for hour in hours):
        raise AuditError(
            f"{raw_dir}: nothing is stored in these hours; raw storage has {hour_key(hours[0])} … "
            f"{hour_key(hours[-1])}"
        )
    return reader, start_ns, end_ns, archive_runs(raw_dir)


def _hour(key: str) -> int:
    try:
        return hour_from_key(key)
    except ValueError:
        raise AuditError(f"{key!r} is not an hour: expected for example 2026-01-31-00:00") from None
