"""Partition keys and the spans of time they name: hours and days, in UTC.

The recorder has its own `ingestor.times`: neither side may import the other's. A test compares the two.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache

from cryptovol_dagster.core.specs import HOUR_S, NS
from ingestor.errors import CryptovolError

HOUR_NS = HOUR_S * NS
DAY_NS = 24 * HOUR_NS
KEY_FORMAT, DAY_FORMAT = "%Y-%m-%d-%H:%M", "%Y-%m-%d"
_DAY_KEY = re.compile(r"\d{4}-\d{2}-\d{2}$")


class PartitionKeyError(CryptovolError, ValueError):
    """The key is neither an hour nor a day; the message contains the expected form."""


def hour_window(partition_key: str) -> tuple[int, int]:
    """Return the window ``[start_ns, end_ns)`` of an hourly partition key (``2026-04-04-03:00``, UTC).

    Raises:
        PartitionKeyError: the key is not an hour.

    Examples:
        >>> start_ns, end_ns = hour_window("2026-04-04-03:00")
        >>> iso_utc(start_ns), (end_ns - start_ns) // NS
        ('2026-04-04T03:00:00Z', 3600)
    """
    try:
        start = datetime.strptime(partition_key, KEY_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise PartitionKeyError(
            f"{partition_key!r} is not an hourly partition: expected for example 2026-01-31-00:00"
        ) from None
    if start.minute:
        raise PartitionKeyError(f"{partition_key!r} is not an hourly partition: expected a full hour")
    start_ns = int(start.timestamp()) * NS
    return start_ns, start_ns + HOUR_NS


def hour_key(time_ns: int) -> str:
    """Return the key of the hour that contains `time_ns` (UTC nanoseconds)."""
    return partition_at(time_ns, HOUR_NS)


def hour_keys(start_ns: int, end_ns: int) -> list[str]:
    """Return the keys of the hours that ``[start_ns, end_ns)`` touches, oldest first.

    Examples:
        >>> start_ns, _ = partition_window("2026-04-04")
        >>> hour_keys(start_ns, start_ns + 2 * HOUR_NS)
        ['2026-04-04-00:00', '2026-04-04-01:00']
    """
    return partitions_between(start_ns, end_ns, HOUR_NS)


# For each hour of a month, all keys of the month are requested again.
@lru_cache(maxsize=2_000)
def partition_window(partition_key: str) -> tuple[int, int]:
    """Return the window ``[start_ns, end_ns)`` of an hourly or a daily partition key (``2026-04-04``, UTC).

    Raises:
        PartitionKeyError: the key is neither.
    """
    if not _DAY_KEY.match(partition_key):
        return hour_window(partition_key)
    try:
        start = datetime.strptime(partition_key, DAY_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise PartitionKeyError(f"{partition_key!r} is not a day: expected for example 2026-01-31") from None
    start_ns = int(start.timestamp()) * NS
    return start_ns, start_ns + DAY_NS


def partition_at(time_ns: int, length_ns: int) -> str:
    """Return the key of the partition that contains `time_ns`.

    Args:
        time_ns: UTC nanoseconds.
        length_ns: length of a partition, an hour or a day.

    Examples:
        >>> start_ns, _ = hour_window("2026-04-04-03:00")
        >>> partition_at(start_ns + 5 * NS, DAY_NS)
        '2026-04-04'
    """
    start = datetime.fromtimestamp(time_ns // length_ns * length_ns // NS, tz=UTC)
    return start.strftime(KEY_FORMAT if length_ns == HOUR_NS else DAY_FORMAT)


def partitions_between(start_ns: int, end_ns: int, length_ns: int) -> list[str]:
    """Return the keys of the partitions that ``[start_ns, end_ns)`` touches, oldest first."""
    first = start_ns // length_ns * length_ns
    return [partition_at(start, length_ns) for start in range(first, end_ns, length_ns)]


def iso_utc(ns: int) -> str:
    """Return `ns` (UTC) as ISO 8601 text, to the second or, where needed, the microsecond.

    Examples:
        >>> iso_utc(1_775_000_000 * NS)
        '2026-03-31T23:33:20Z'
    """
    moment = datetime.fromtimestamp(ns // NS, UTC).replace(microsecond=ns % NS // 1_000, tzinfo=None)
    return f"{moment.isoformat()}Z"
