"""The choice of an episode rule: within the budget, one that finds events, the simplest of equal ones."""

from __future__ import annotations

import numpy as np
import pytest

from cryptovol_dagster.core.evaluation.episode_choice import choose_rule, grid
from cryptovol_dagster.core.metrics.events import Market
from cryptovol_dagster.core.specs import NS

HOUR = 3_600


def market(*spans: tuple[int, int]) -> Market:
    """Return an hour of seconds with spike events at some of them."""
    y = np.zeros(HOUR, dtype=bool)
    for first, stop in spans:
        y[first:stop] = True
    names = np.array(["BTC-USD"] * HOUR, dtype=object)
    return Market(names, NS * np.arange(HOUR), y, y & False, bar_ns=NS, horizon_ns=4 * NS)


def high(*spans: tuple[int, int], value: float = 0.9) -> np.ndarray:
    p = np.full(HOUR, 0.1)
    for first, stop in spans:
        p[first:stop] = value
    return p


def test_of_equal_rules_the_simplest_is_chosen() -> None:
    found = choose_rule(market((100, 130)), high((100, 130)), [0.5, 0.7], 2.0)
    assert found == (grid([0.5, 0.7], 4)[0], True, 2 * 36)


def test_single_false_bars_are_answered_by_more_bars_of_n() -> None:
    false = [(at, at + 1) for at in range(1_000, 1_500, 100)]
    found = choose_rule(market((100, 130)), high((100, 130), *false), [0.5], 2.0)
    assert found is not None
    assert (found.rule.k, found.rule.n, found.within_budget) == (2, 3, True)


def test_the_threshold_of_the_budget_is_taken_where_the_other_is_too_low() -> None:
    false = [(at, at + 30) for at in range(1_000, 1_500, 100)]
    p = np.maximum(high((100, 130)), high(*false, value=0.6))
    found = choose_rule(market((100, 130)), p, [0.5, 0.8], 2.0)
    assert found is not None
    assert (found.rule.enter, found.within_budget) == (0.8, True)


def test_over_the_budget_the_fewest_false_episodes_win_against_a_rule_that_finds_nothing() -> None:
    """At 0.95 no bar is high: that keeps the budget, and is no alarm."""
    false = [(at, at + 30) for at in range(1_000, 1_500, 100)]
    found = choose_rule(market((100, 130)), high((100, 130), *false), [0.5, 0.95], 2.0)
    assert found is not None
    assert (found.rule.enter, found.within_budget) == (0.5, False)


@pytest.mark.parametrize(
    ("spans", "enters"),
    [((), [0.5]), (((100, 130),), []), (((100, 130),), [0.95]), (((2_000, 2_030),), [0.5])],
)
def test_where_no_event_can_be_found_there_is_no_rule(
    spans: tuple[tuple[int, int], ...], enters: list[float]
) -> None:
    assert choose_rule(market(*spans), high((100, 130)), enters, 2.0) is None
