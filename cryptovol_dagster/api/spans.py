"""Spans of time as people write them: ISO text, datetimes, a day, an hour, "the last six hours"."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd

from cryptovol_dagster.api.errors import ApiError
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import DAY_NS, HOUR_NS

#: A time, or a distance back from the end of the data.
Time = str | date | timedelta | np.datetime64 | None

_KEY = re.compile(r"(\d{4}-\d{2}-\d{2})-(\d{2}):00$")
_HOUR = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}$")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}$")
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}(:\d{2}(:\d{2}(\.\d+)?)?)?)?( ?(Z|[+-]\d{2}:?\d{2}))?$")
_BACK = re.compile(r"-\d+(\.\d+)? ?(s|min|h|d|w)$", re.IGNORECASE)
_EXPECTED = (
    'expected "2025-12-01", "2025-12-01T10", "2025-12-01T10:30" (UTC), "-6h" (back from the end), '
    "a datetime or a pandas Timestamp"
)
#: Nanoseconds in 64 bits reach from 1677 to 2262; a year more on each side is room to reckon in.
_YEARS = (1700, 2199)
_FIRST_NS = pd.Timestamp(year=_YEARS[0], month=1, day=1).value


def parse_span(start: Time, end: Time, newest_ns: Callable[[], int]) -> tuple[int | None, int | None]:
    """Return the half-open span ``[start, end)`` in UTC nanoseconds; None is an open end.

    A day or an hour alone (`start` without `end`) is that day or hour. A time without a zone is UTC. What is
    counted back begins at `end` where that is given, else at the end of the data.

    Args:
        start: beginning of the span.
        end: end of the span; rows at this time are not part of it.
        newest_ns: returns the end of the data; called only where a time is counted back from there.

    Raises:
        ApiError: no time, a start that is not before the end, or a zone on one side only.
    """
    end_back = _back_ns(end)
    end_ns = newest_ns() - end_back if end_back is not None else _moment_ns(end)
    if end_ns is not None and end_ns < _FIRST_NS:
        raise _outside(end)
    start_back = _back_ns(start)
    if start_back is not None:
        end_ns = newest_ns() if end_ns is None else end_ns
        start_ns = end_ns - start_back
        if start_ns < _FIRST_NS:
            raise _outside(start)
    else:
        start_ns = _moment_ns(start)
    _require_same_zones(start, end)
    if start_ns is not None and end_ns is None:
        length_ns = _period_ns(start)
        end_ns = None if length_ns is None else start_ns + length_ns
    if start_ns is not None and end_ns is not None and start_ns >= end_ns:
        raise ApiError(
            f"start {shown(start_ns)} is not before end {shown(end_ns)}; the end itself is not part of a span"
        )
    return start_ns, end_ns


def shown(time_ns: int) -> str:
    """Return a time as messages show it: ``2025-12-01T10:00Z``."""
    moment = datetime.fromtimestamp(time_ns // NS, UTC)
    return f"{moment:%Y-%m-%dT%H:%M}" + (f":{moment:%S}Z" if moment.second else "Z")


def _back_ns(time: Time) -> int | None:
    """Return how far back a time is counted; None where it is not such a time."""
    if isinstance(time, str) and _BACK.match(time):
        length = time[1:].lower()
    elif isinstance(time, timedelta):
        if time >= timedelta(0):
            raise ApiError(f'{time} is after the end of the data: a length must be negative, as in "-6h"')
        length = -time
    else:
        return None
    try:
        return int(pd.Timedelta(length).as_unit("ns").value)
    except (ValueError, OverflowError):
        raise _outside(time) from None


def _moment_ns(time: Time) -> int | None:
    if time is None:
        return None
    if isinstance(time, str):
        key = _KEY.match(time)
        text = f"{key[1]}T{key[2]}:00" if key else time
        if not _ISO.match(text):
            raise ApiError(f"{time!r} is no time: {_EXPECTED}")
    elif isinstance(time, date | np.datetime64):
        text = time
    else:
        raise ApiError(f"{time!r} ({type(time).__name__}) is no time: {_EXPECTED}")
    try:
        moment = pd.Timestamp(text)
    except ValueError as error:
        raise ApiError(f"{time!r} is no time ({error}): {_EXPECTED}") from None
    if moment is pd.NaT:
        raise ApiError(f"{time!r} is no time: {_EXPECTED}")
    if not _YEARS[0] <= moment.year <= _YEARS[1]:
        raise _outside(time)
    return (moment if moment.tzinfo is None else moment.tz_convert("UTC")).as_unit("ns").value


def _outside(time: Time) -> ApiError:
    said = time if isinstance(time, str | timedelta) else str(time)
    return ApiError(
        f"{said!r} lies outside the years {_YEARS[0]} to {_YEARS[1]}: leave start out to begin with "
        "the first row stored, leave end out to end with the last"
    )


def _period_ns(time: Time) -> int | None:
    """Return the length of a day or an hour that is named as such; None for a moment."""
    if isinstance(time, str):
        if _DAY.match(time):
            return DAY_NS
        return HOUR_NS if _HOUR.match(time) or _KEY.match(time) else None
    return DAY_NS if isinstance(time, date) and not isinstance(time, datetime) else None


def _require_same_zones(start: Time, end: Time) -> None:
    """Refuse a local time beside one without a zone: which of both is meant for the other?

    Raises:
        ApiError: one has a zone other than UTC, the other has none.
    """
    offsets = [_offset(time) for time in (start, end)]
    named = [offset for offset in offsets if offset]
    if named and None in offsets and start is not None and end is not None and not _is_back(start, end):
        side = ("start", "end")[offsets.index(None)]
        raise ApiError(
            f"{side} has no time zone (UTC is meant), the other one is {named[0]:+g} h from UTC: "
            "give both a zone, or both none"
        )


def _is_back(*times: Time) -> bool:
    return any(_back_ns(time) is not None for time in times)


def _offset(time: Time) -> float | None:
    """Return the hours from UTC that a time states; None where it has no zone."""
    moment = pd.Timestamp(time) if isinstance(time, str) and _ISO.match(time) else time
    offset = moment.utcoffset() if isinstance(moment, datetime) else None
    return None if offset is None else offset / timedelta(hours=1)
