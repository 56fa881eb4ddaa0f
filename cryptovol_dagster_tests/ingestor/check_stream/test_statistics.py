"""Counts exact, quantiles within what they promise, whatever comes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptovol_dagster_tests.ingestor.check_stream.messages import NS, T0_NS, dead, event, tick, trade
from ingestor.check_stream.statistics import (
    RELATIVE_ERROR,
    PartitionSeen,
    Quantiles,
    RecentCount,
    StreamReport,
)
from ingestor.envelope import DEAD, EVENTS, FEATURES_TOPIC, TICKS, TRADES, closing_message, encode

INT64 = st.integers(-(2**63), 2**63 - 1)
MS = 10**6


@given(values=st.lists(INT64 | st.integers(-(10**9), 10**9), min_size=1), share=st.floats(0, 1))
def test_a_quantile_is_near_the_value_of_its_rank(values: list[int], share: float) -> None:
    quantiles = Quantiles()
    for value in values:
        quantiles.add(value)
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    found = quantiles.quantile_ns(share)
    assert found is not None
    assert abs(found - exact) <= max(1_000, RELATIVE_ERROR * abs(exact) * (1 + 1e-6))
    assert (quantiles.count, quantiles.negative) == (len(values), sum(value < 0 for value in values))
    assert (quantiles.least_ns, quantiles.greatest_ns) == (min(values), max(values))
    assert min(values) <= found <= max(values)


def test_the_histogram_is_bounded() -> None:
    quantiles = Quantiles()
    for exponent in range(0, 63_000, 3):
        size = int(2 ** (exponent / 1_000))
        quantiles.add(size)
        quantiles.add(-size)
    assert len(quantiles._buckets) < 3_800


def test_quantiles_of_nothing_are_none() -> None:
    assert Quantiles().as_dict() == {
        "count": 0,
        "p50": None,
        "p90": None,
        "p99": None,
        "max": None,
        "negative_share": None,
    }


@given(gaps=st.lists(st.floats(0, 3), min_size=1, max_size=200))
def test_the_recent_rate_counts_the_last_seconds(gaps: list[float]) -> None:
    recent, at_s, times = RecentCount(), 0.0, []
    for gap in gaps:
        at_s += gap
        recent.add(at_s)
        times.append(at_s)
    divisor = max(min(at_s, 5.0), 0.5)
    least = sum(time > at_s - 4.5 for time in times) / divisor
    most = sum(time > at_s - 5.5 for time in times) / divisor
    assert least <= recent.per_second(at_s) <= most
    assert recent.per_second(at_s + 6) == 0
    assert len(recent._slots) <= 11


def report_of(*messages: tuple[str, bytes | None, bytes], now_ns: int = T0_NS) -> StreamReport:
    report = StreamReport("here:9092")
    for number, (topic, key, value) in enumerate(messages):
        report.take_in(topic, key, value, place=f"{topic} offset {number}", now_ns=now_ns, at_s=number)
    report.now_ns, report.seconds = now_ns, 10.0
    return report


def test_everything_is_counted_where_it_belongs() -> None:
    report = report_of(
        (TICKS, b"BTC-USD", tick(event_time_ns=T0_NS + 60 * MS)),
        (TICKS, b"BTC-USD", tick(event_time_ns=T0_NS)),
        (TICKS, b"BTC-USD", tick(event_time_ns=T0_NS + 60 * MS)),
        (TICKS, b"ETH-USD", tick("ETH-USD", "ETH-USD")),
        (TRADES, b"BTC-USD", trade()),
        (EVENTS, b"c", event("connected")),
        (EVENTS, b"c", event("gap", count=3)),
        (EVENTS, b"c", event("gap", count=4)),
        (DEAD, b"c", dead("not UTF-8")),
        (FEATURES_TOPIC, b"BTC-USD", b'{"product":"BTC-USD","revision":0,"x":[1]}'),
        (FEATURES_TOPIC, b"BTC-USD", b'{"product":"BTC-USD","revision":2}'),
        (FEATURES_TOPIC, b"BTC-USD", b"{}"),
        # How far a partition has closed is no row.
        (FEATURES_TOPIC, b"#2", encode(closing_message(2, T0_NS, "v1"))),
        now_ns=T0_NS + NS,
    )
    told = report.as_dict()
    assert report.problem is None
    assert told["messages"] == {
        TICKS: 4,
        TRADES: 1,
        EVENTS: 3,
        DEAD: 1,
        FEATURES_TOPIC: 3,
    }
    bitcoin = told["products"]["BTC-USD"]
    assert (bitcoin["messages"], bitcoin["trades"], bitcoin["out_of_order"]) == (3, 1, 1)
    assert (bitcoin["newest_event_time"], bitcoin["age_s"]) == ("2026-05-01T10:00:00.06Z", 0.94)
    assert bitcoin["per_second"] == 0.3
    assert bitcoin["exchange_to_read_ms"]["p50"] == pytest.approx(-60, rel=0.01)
    assert bitcoin["exchange_to_read_ms"]["max"] == 0
    assert bitcoin["exchange_to_read_ms"]["negative_share"] == pytest.approx(2 / 3, abs=1e-4)
    assert bitcoin["read_to_here_ms"]["p50"] == pytest.approx(1_000, rel=0.01)
    assert (told["gaps"], told["missing_frames"], told["connections"], told["reconnects"]) == (2, 7, 1, 0)
    assert (told["dead_letters"], told["last_dead_reason"]) == (1, "not UTF-8")
    assert (told["feature_rows"], told["feature_revisions"]) == (3, 1)
    assert told["notes"] == []


def test_each_invalid_message_is_told_with_its_place() -> None:
    invalid = {
        "JSON": (TICKS, b"BTC-USD", b"no json"),
        "missing required field": (TICKS, b"BTC-USD", b"{}"),
        "key": (TICKS, b"ETH-USD", tick()),
        "entry of ETH-USD": (TICKS, b"BTC-USD", tick(inner="ETH-USD")),
        "schema version 9": (TICKS, b"BTC-USD", tick(version=9)),
    }
    good = (TICKS, b"BTC-USD", tick())
    report = report_of(good, *invalid.values(), good)
    assert (report.messages[TICKS], report.invalid.total()) == (2, len(invalid))
    for number, reason in enumerate(invalid, start=1):
        told = [line for line in report.first_errors if reason in line]
        assert len(told) == 1, report.first_errors
        assert told[0].startswith(f"ticks.raw offset {number}: ")
    assert report.problem is not None
    assert report.first_errors[0] in report.problem


@pytest.mark.parametrize("topic", [TRADES, EVENTS, DEAD, FEATURES_TOPIC])
def test_nonsense_is_invalid_on_every_topic(topic: str) -> None:
    report = report_of((TICKS, b"BTC-USD", tick()), (topic, b"BTC-USD", b"\x00"))
    assert report.invalid == {topic: 1}
    assert report.problem is not None


def test_a_recording_is_told_as_one() -> None:
    report = report_of((TICKS, b"BTC-USD", tick()), now_ns=T0_NS + 40 * 86_400 * NS)
    assert len(report.notes) == 1
    assert "a recording or a simulated market" in report.notes[0]


def test_products_without_end_share_a_row() -> None:
    names = [f"P{number}-USD" for number in range(1_200)]
    report = report_of(*((TICKS, name.encode(), tick(name, name)) for name in names))
    assert len(report.products) == 1_001
    assert report.products["(others)"].ticks == 200
    assert report.messages[TICKS] == 1_200


def test_lags_are_told_where_they_are_known() -> None:
    report = StreamReport("here:9092", archive_group="cryptovol-archive", archive_unknown="no answer in time")
    report.partitions = (PartitionSeen(TICKS, 0, 10, 8, 4), PartitionSeen(TICKS, 1, 5, 5))
    told = report.as_dict()
    assert [seen["behind"] for seen in told["partitions"]] == [2, 0]
    assert [seen["archive_lag"] for seen in told["partitions"]] == [6, None]
    assert told["archive_lag"] == 6
    assert "cryptovol-archive is not available: no answer in time" in told["notes"][0]
