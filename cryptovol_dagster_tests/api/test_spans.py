"""What people write for a time, and what it means."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.api import ApiError
from cryptovol_dagster.api.spans import Time, parse_span, shown

NEWEST = pd.Timestamp("2025-12-01T18:00Z").value
EAST = timezone(timedelta(hours=2))


def span(start: Time = None, end: Time = None) -> tuple[str | None, str | None]:
    found = parse_span(start, end, lambda: NEWEST)
    first, last = (None if ns is None else shown(ns) for ns in found)
    return first, last


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, (None, None)),
        ("2025-12-01", None, ("2025-12-01T00:00Z", "2025-12-02T00:00Z")),
        ("2025-12-01T10", None, ("2025-12-01T10:00Z", "2025-12-01T11:00Z")),
        ("2025-12-01-10:00", None, ("2025-12-01T10:00Z", "2025-12-01T11:00Z")),
        (date(2025, 12, 1), None, ("2025-12-01T00:00Z", "2025-12-02T00:00Z")),
        ("2025-12-01T10:00", None, ("2025-12-01T10:00Z", None)),
        ("2025-12-01", "2025-12-02", ("2025-12-01T00:00Z", "2025-12-02T00:00Z")),
        ("2025-12-01T10:00", "2025-12-01 12:00:05", ("2025-12-01T10:00Z", "2025-12-01T12:00:05Z")),
        ("2025-12-01T10:00+02:00", "2025-12-01T12:00Z", ("2025-12-01T08:00Z", "2025-12-01T12:00Z")),
        (datetime(2025, 12, 1, 10, tzinfo=EAST), None, ("2025-12-01T08:00Z", None)),
        (pd.Timestamp("2025-12-01T10:00"), None, ("2025-12-01T10:00Z", None)),
        (np.datetime64("2025-12-01T10:00"), None, ("2025-12-01T10:00Z", None)),
        (
            datetime(2025, 12, 1, 10, tzinfo=UTC),
            "2025-12-01T12:00",
            ("2025-12-01T10:00Z", "2025-12-01T12:00Z"),
        ),
        ("-6h", None, ("2025-12-01T12:00Z", "2025-12-01T18:00Z")),
        ("-6H", None, ("2025-12-01T12:00Z", "2025-12-01T18:00Z")),
        ("-30S", None, ("2025-12-01T17:59:30Z", "2025-12-01T18:00Z")),
        ("-2D", "-36 H", ("2025-11-28T06:00Z", "2025-11-30T06:00Z")),
        ("-90min", None, ("2025-12-01T16:30Z", "2025-12-01T18:00Z")),
        (timedelta(hours=-1), None, ("2025-12-01T17:00Z", "2025-12-01T18:00Z")),
        ("-1h", "2025-12-01T10:00", ("2025-12-01T09:00Z", "2025-12-01T10:00Z")),
        ("-6h", "-3h", ("2025-12-01T09:00Z", "2025-12-01T15:00Z")),
        (None, "2025-12-01", (None, "2025-12-01T00:00Z")),
    ],
)
def test_a_span_is_half_open_in_utc(start: Time, end: Time, expected: tuple[str | None, str | None]) -> None:
    assert span(start, end) == expected


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("yesterday", None, "'yesterday' is no time: expected \"2025-12-01\""),
        ("01/12/2025", None, "'01/12/2025' is no time"),
        ("2025-13-01", None, "month must be in 1..12"),
        (1_764_583_200, None, r"1764583200 \(int\) is no time"),
        (
            "2025-12-01T12:00",
            "2025-12-01T12:00",
            "start 2025-12-01T12:00Z is not before end 2025-12-01T12:00Z",
        ),
        ("2025-12-02", "2025-12-01", "is not before end"),
        ("2999-12-31", None, "'2999-12-31' lies outside the years 1700 to 2199: leave start out"),
        ("0001-01-01", None, "'0001-01-01' lies outside the years"),
        (None, "9999-12-31T23:59:59+14:00", "lies outside the years"),
        (date.max, None, "'9999-12-31' lies outside the years"),
        (datetime(1, 1, 1, tzinfo=EAST), None, "lies outside the years"),
        (np.datetime64("12025-12-01T10:00"), None, "lies outside the years"),
        ("-999999999999d", None, "'-999999999999d' lies outside the years"),
        ("-100000d", "1900-01-01", "'-100000d' lies outside the years"),
        (None, "-130000d", "lies outside the years"),
        (timedelta.min, None, "lies outside the years"),
        (timedelta(days=-9_999_999), None, "lies outside the years"),
        (timedelta(hours=1), None, "a length must be negative"),
        ("2025-12-01T10:00+02:00", "2025-12-01T12:00", r"end has no time zone .* \+2 h from UTC"),
        (datetime(2025, 12, 1), datetime(2025, 12, 2, tzinfo=EAST), "start has no time zone"),  # noqa: DTZ001
    ],
)
def test_what_is_no_span_is_one_line_that_says_what_to_write(start: Time, end: Time, message: str) -> None:
    with pytest.raises(ApiError, match=message) as error:
        span(start, end)
    assert "\n" not in str(error.value)
