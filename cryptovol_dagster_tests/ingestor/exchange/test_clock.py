"""RFC 3339 ↔ nanoseconds."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.exchange.clock import ns_to_rfc3339, rfc3339_to_ns

MINUTE_NS = 60 * 10**9


@given(st.integers(-9_223_286_400 * 10**9, 9_223_286_400 * 10**9))
def test_every_nanosecond_survives_the_round_trip(ns: int) -> None:
    assert rfc3339_to_ns(ns_to_rfc3339(ns)) == ns


@given(
    st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)),  # noqa: DTZ001 - hypothesis takes naive bounds
    st.integers(0, 9),
    st.data(),
)
def test_any_number_of_fraction_digits_is_exact(moment: datetime, digits: int, data: st.DataObject) -> None:
    fraction = "".join(data.draw(st.lists(st.sampled_from("0123456789"), min_size=digits, max_size=digits)))
    text = f"{moment:%Y-%m-%dT%H:%M:%S}" + (f".{fraction}" if fraction else "") + "Z"
    whole_s = int(moment.replace(microsecond=0, tzinfo=UTC).timestamp())
    expected = whole_s * 10**9 + int(fraction.ljust(9, "0") or 0)
    assert rfc3339_to_ns(text) == expected
    assert rfc3339_to_ns(text) == expected  # the second reading takes the quick way


def test_times_of_the_wire() -> None:
    assert rfc3339_to_ns("2026-04-05T22:35:13.92532762Z") == 1_775_428_513_925_327_620
    assert rfc3339_to_ns("2026-08-09T21:05:41Z") == 1_786_309_541_000_000_000
    assert ns_to_rfc3339(1_775_428_513_925_327_620) == "2026-04-05T22:35:13.92532762Z"
    assert ns_to_rfc3339(1_786_309_541_000_000_000) == "2026-08-09T21:05:41Z"


def test_offsets_are_taken_off() -> None:
    utc = rfc3339_to_ns("2026-04-04T03:19:18.80232Z")
    assert rfc3339_to_ns("2026-04-04T03:19:18.802320+00:00") == utc
    assert rfc3339_to_ns("2026-04-04T05:49:18.80232+02:30") == utc
    assert rfc3339_to_ns("2026-04-03T19:19:18.80232-08:00") == utc


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2026-04-05",
        "2026-04-05T22:35",
        "2026-04-05T22:35Z",
        "2026-04-05T22:35:13",
        "2026-04-05T22:35:13.Z",
        "2026-04-05T22:35:13.1234567891Z",
        "2026-04-05T22:35:13.12_3Z",
        "2026-04-05T22:35:+3.5Z",
        "2026-04-05T22:35: 3.5Z",
        "2026-04-05T22:35:1３.5Z",
        "2026-04-05T22:35:60Z",
        "2026-04-05T22:60:13Z",
        "2026-04-05T24:00:13Z",
        "2026-02-30T22:35:13Z",
        "2026-13-01T22:35:13Z",
        "2026-04-05T22:35:13+25:00",
        "2026-04-05T22:35:13+0100",
        "2026-04-05T22:35x13.5Z",
        "2026-04-05T22:35:13x5Z",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
        " 2026-04-05T22:35:13Z",
    ],
)
def test_what_is_no_time_says_so(text: str) -> None:
    rfc3339_to_ns("2026-04-05T22:35:13Z")  # the minute is known: the quick way must refuse as well
    with pytest.raises(ValueError, match=r"RFC 3339|calendar|64-bit"):
        rfc3339_to_ns(text)


def test_many_minutes_do_not_pile_up() -> None:
    from ingestor.exchange import clock

    for minute in range(10_000):
        assert rfc3339_to_ns(ns_to_rfc3339(minute * MINUTE_NS)) == minute * MINUTE_NS
    assert len(clock._minutes) <= clock._MINUTES_KEPT
