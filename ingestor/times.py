"""Time in the recorder: integer nanoseconds since 1970 UTC, and the hours that raw storage is cut into.

The pipeline has its own `cryptovol_dagster.core.times`: neither side may import the other's. A test compares
the two.
"""

from __future__ import annotations

from datetime import UTC, datetime

#: One second, one hour and one day in nanoseconds.
NS = 1_000_000_000
HOUR_NS = 3_600 * NS
DAY_NS = 24 * HOUR_NS

_KEY_FORMAT = "%Y-%m-%d-%H:00"


def hour_start(time_ns: int) -> int:
    """Return the start of the hour that contains `time_ns`."""
    return time_ns // HOUR_NS * HOUR_NS


def hour_key(time_ns: int) -> str:
    """Return the name of the hour that contains `time_ns`: ``YYYY-MM-DD-HH:00``, UTC."""
    return datetime.fromtimestamp(hour_start(time_ns) // NS, UTC).strftime(_KEY_FORMAT)


def hour_from_key(key: str) -> int:
    """Return the start of the hour called ``YYYY-MM-DD-HH:00``, in nanoseconds.

    Raises:
        ValueError: `key` is not such a name.
    """
    return int(datetime.strptime(key, _KEY_FORMAT).replace(tzinfo=UTC).timestamp()) * NS
