"""RFC 3339 text ↔ integer nanoseconds since 1970 UTC, exact to the last digit.

The exchange writes 6 to 9 fractional digits with trailing zeros cut, so neither string order nor a `datetime`
(microseconds) keeps the time. Calendar arithmetic is done once a minute of text; the rest is two `int()`
calls.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from ingestor.times import NS

_INT64_MAX = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SCALE = tuple(10 ** (9 - digits) for digits in range(10))
_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}):(\d{2})(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d{2}):(\d{2}))", re.ASCII
)
#: "2026-04-05T22:35" → ns of that minute. A feed lives in one minute at a time; a recording visits each once.
_minutes: dict[str, int] = {}
_MINUTES_KEPT = 4096


def rfc3339_to_ns(text: str) -> int:
    """Read a time such as ``2026-04-05T22:35:13.92532762Z`` as integer nanoseconds since 1970 UTC.

    Zero to nine fractional digits; ``Z`` or an offset such as ``+00:00``.

    Raises:
        ValueError: not such a time, or outside of 64-bit nanoseconds (1677 to 2262).
    """
    minute_ns = _minutes.get(text[:16])
    # The exchange's own shape. A known minute proves the first 16 characters; isascii keeps int() to 0-9.
    if minute_ns is not None and text[-1] == "Z" and text[16:17] == ":" and text.isascii():
        second, fraction = text[17:19], text[20:-1]
        if second.isdigit() and len(second) == 2 and second < "60":
            if text[19] == "." and fraction.isdigit() and len(fraction) < 10:
                return minute_ns + int(second) * NS + int(fraction) * _SCALE[len(fraction)]
            if len(text) == 20:
                return minute_ns + int(second) * NS
    return _read_slowly(text)


def ns_to_rfc3339(ns: int) -> str:
    """Write integer nanoseconds since 1970 UTC as the exchange does: ``Z``, trailing zeros cut."""
    seconds, fraction = divmod(ns, NS)
    whole = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{fraction:09d}".rstrip("0").rstrip(".") + "Z"


def _read_slowly(text: str) -> int:
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    date, minute, second, fraction, sign, offset_h, offset_min = match.groups()
    if second >= "60" or (sign and (offset_h > "23" or offset_min > "59")):
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    try:
        start = datetime.fromisoformat(f"{date}T{minute}:00+00:00")
    except ValueError:
        raise ValueError(f"not a date of the calendar: {text!r}") from None
    minute_ns = (start - _EPOCH) // timedelta(seconds=1) * NS
    if sign:
        offset_ns = (int(offset_h) * 60 + int(offset_min)) * 60 * NS
        minute_ns -= offset_ns if sign == "+" else -offset_ns
    ns = minute_ns + int(second) * NS + int((fraction or "").ljust(9, "0"))
    if abs(ns) > _INT64_MAX:
        raise ValueError(f"outside of what 64-bit nanoseconds hold: {text!r}")
    # Only whole minutes inside the range are remembered, so that the quick way needs no range check.
    if not sign and text[10] == "T" and abs(minute_ns) + 60 * NS <= _INT64_MAX:
        if len(_minutes) >= _MINUTES_KEPT:
            _minutes.clear()
        _minutes[text[:16]] = minute_ns
    return ns
