"""Bars without a row: each is reported once, and no second is passed over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cryptovol_dagster.core.features.live import LONGEST_HOLE_NS, LONGEST_SILENCE_NS
from cryptovol_dagster.core.live.absence import Absences

BAR = 10**9


def of(*configured: str) -> Absences:
    return Absences(BAR, {"BTC-USD": 0, "ETH-USD": 1, "SOL-USD": 0}.__getitem__, configured)


@given(
    seen=st.sets(st.integers(2, 40)),
    steps=st.lists(st.integers(1, 45), min_size=1, max_size=8),
    late=st.sets(st.integers(2, 40)),
)
def test_each_bar_is_seen_or_reported_once(seen: set[int], steps: list[int], late: set[int]) -> None:
    absences, found = of(), []
    absences.saw("BTC-USD", BAR)
    for bar in sorted(seen):
        absences.saw("BTC-USD", bar * BAR)
    for step in steps:
        found += [end_ns // BAR for _, end_ns in absences.due(0, step * BAR + BAR // 2)]
        for bar in sorted(late):
            absences.saw("BTC-USD", bar * BAR)
    last, first = max(steps), steps[0]
    assert sorted(found) == sorted(set(found))
    missing = {bar for bar in range(2, last + 1) if bar not in seen}
    # A row that comes before its bar is due is none that is missing.
    assert set(found) == {bar for bar in missing if bar <= first or bar not in late}


def test_a_configured_product_is_reported_from_the_first_closing_on() -> None:
    absences = of("ETH-USD")
    assert absences.due(1, 100 * BAR) == []
    assert absences.due(1, 102 * BAR) == [("ETH-USD", 101 * BAR), ("ETH-USD", 102 * BAR)]
    assert absences.due(0, 200 * BAR) == []


def test_a_product_that_is_not_configured_is_dropped_after_the_longest_silence() -> None:
    absences = of("BTC-USD")
    for product in ("BTC-USD", "SOL-USD"):
        absences.saw(product, BAR)
    until_ns = BAR + LONGEST_SILENCE_NS + BAR
    assert {product for product, _ in absences.due(0, until_ns)} == {"BTC-USD"}
    assert absences.due(0, until_ns + BAR) == [("BTC-USD", until_ns + BAR)]


def test_a_hole_between_two_recordings_is_not_reported() -> None:
    absences = of("BTC-USD")
    absences.saw("BTC-USD", BAR)
    later_ns = BAR + LONGEST_HOLE_NS + BAR
    assert absences.due(0, later_ns) == []
    absences.saw("BTC-USD", 2 * BAR)
    assert absences.due(0, 3 * BAR) == [("BTC-USD", 3 * BAR)]


def test_an_account_goes_on_where_an_earlier_run_ended() -> None:
    absences = of("BTC-USD")
    absences.start("BTC-USD", 5 * BAR)
    absences.saw("BTC-USD", 6 * BAR)
    assert absences.due(0, 7 * BAR) == [("BTC-USD", 7 * BAR)]
