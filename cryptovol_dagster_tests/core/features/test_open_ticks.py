"""Open ticks are cleaned again at each close, and counted once."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from cryptovol_dagster.core.features.open_ticks import OpenTicks
from cryptovol_dagster.core.market.cleaning import TickCounts, clean_ticks, flag_gaps
from cryptovol_dagster.core.market.ticks import TickColumns
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster_tests.core.market.builders import START_NS, random_ticks

LATE_NS = 2 * NS


def assert_same(one: TickColumns, other: TickColumns) -> None:
    assert one.products == other.products
    for each in fields(TickColumns):
        found, expected = getattr(one, each.name), getattr(other, each.name)
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(found, expected, err_msg=each.name)


def test_ticks_added_in_pieces_are_cleaned_as_one_and_counted_once() -> None:
    ticks = random_ticks(3, seconds=200, per_second=3)
    whole = clean_ticks(flag_gaps(ticks, {}), LATE_NS)
    held = OpenTicks(LATE_NS)
    for first in range(0, len(ticks), 50):
        held.add(ticks.take(slice(first, first + 50)))
        held.cleaned()
    assert_same(held.cleaned(), whole.ticks)
    assert held.counts == whole.counts


def test_dropping_old_ticks_changes_neither_later_ones_nor_the_counts() -> None:
    ticks = random_ticks(5, seconds=200, per_second=3)
    whole = clean_ticks(flag_gaps(ticks, {}), LATE_NS)
    middle = len(ticks) // 2
    from_ns = int(ticks.event_time_ns[:middle].max()) - 30 * NS
    held = OpenTicks(LATE_NS)
    held.add(ticks.take(slice(0, middle)))
    held.cleaned()
    held.forget_before(from_ns)
    held.add(ticks.take(slice(middle, None)))
    found = held.cleaned()
    assert len(found) < len(whole.ticks)
    assert_same(
        found.take(found.event_time_ns >= from_ns), whole.ticks.take(whole.ticks.event_time_ns >= from_ns)
    )
    assert held.counts == whole.counts


def test_a_gap_is_news_once_and_only_for_connections_of_this_recording() -> None:
    held = OpenTicks(LATE_NS)
    held.add(random_ticks(1, seconds=20, faults=False))
    assert held.connections == {"c0"}
    assert not held.learn_gaps({"elsewhere": np.array([3])})
    assert held.learn_gaps({"c0": np.array([3])})
    assert not held.learn_gaps({"c0": np.array([3])})
    assert held.learn_gaps({"c0": np.array([3, 9])})
    assert held.cleaned().gap_before.any()


def test_another_recording_keeps_the_counts_and_the_gaps() -> None:
    held = OpenTicks(LATE_NS)
    held.add(random_ticks(1, seconds=20, faults=False))
    held.learn_gaps({"c0": np.array([3])})
    held.cleaned()
    counts = held.counts
    held.restart()
    assert (held.products, held.connections, held.counts) == ((), set(), counts)
    assert counts != TickCounts()
    held.add(random_ticks(1, seconds=20, faults=False, start_ns=START_NS - 3_600 * NS))
    assert held.cleaned().gap_before.any()
