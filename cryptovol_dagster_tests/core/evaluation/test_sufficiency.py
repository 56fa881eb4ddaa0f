"""How much a span can teach: counts by hand, and what must hold of any rows."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster.core.evaluation.report import Sufficiency
from cryptovol_dagster.core.evaluation.sufficiency import (
    CLASSES,
    assess,
    assess_training,
    count_apart,
)
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster_tests.core.clustered_market import make_problem

MINUTE, HOUR, DAY = 60 * NS, 3_600 * NS, 86_400 * NS
ORDER = ("none", *(kind.name for kind in CLASSES))


def span(
    days: float, *, every: int = 60, length: int = 6, features: int = 20, products: tuple[str, ...] = ("A",)
) -> Sufficiency:
    """Minutes of which `length` in `every` are a spike, H = 5 min."""
    minutes = round(days * 1_440)
    t_ns = np.tile(np.arange(minutes, dtype=np.int64) * MINUTE, len(products))
    y = t_ns // MINUTE % every < length
    product = np.repeat(np.array(products, dtype=object), minutes)
    sigma = np.where(y, 2e-4, 1e-4)
    return assess(t_ns, y, sigma, product, bar_ns=MINUTE, horizon_ns=5 * MINUTE, features=features)


def test_each_class_is_reached_in_turn_and_says_what_the_next_one_lacks() -> None:
    found = {days: span(days) for days in (1 / 6, 1, 3, 10, 31)}
    assert [one.supports for one in found.values()] == list(ORDER)
    few = found[1 / 6]
    assert (few.spikes_apart, few.positives, few.events, few.next_class) == (4, 24, 4, "single")
    assert few.missing == (
        "single: 30 rows that are spikes are needed, 24 found",
        "single: 10 spikes apart (10 a feature, 1 read) are needed, 4 found",
    )
    assert few.more_days == pytest.approx(6 / 24)
    assert found[1].missing == (
        "har: 25 spikes apart (5 a feature, 5 read) are needed, 24 found",
        "har: 3 days are needed, 1 found",
    )
    assert found[1].more_days == 2
    assert found[3].missing == ("logit: 7 days are needed, 3 found",)
    assert found[10].more_days == 20
    assert (found[31].missing, found[31].next_class, found[31].more_days) == ((), None, None)


def test_many_features_want_many_spikes() -> None:
    wide = span(10, features=200)
    assert (wide.supports, wide.spikes_apart, wide.spikes_per_feature) == ("har", 240, 1.2)
    assert wide.missing == ("logit: 400 spikes apart (2 a feature, 200 read) are needed, 240 found",)
    assert wide.more_days == pytest.approx(160 / 24)
    # A full set of two columns is no easier to learn than the HAR ladder.
    assert span(10, every=1_440, features=2).supports == "single"


def test_without_a_spike_there_is_no_rate() -> None:
    none = span(3, length=0)
    assert (none.supports, none.spikes_apart, none.positive_blocks, none.more_days) == ("none", 0, 0, None)
    assert none.to_dict()["summary"] == (
        "0 independent spikes in 3 days, too few for any model; time not known yet for one-feature models"
    )


def test_what_is_said_in_one_line() -> None:
    assert span(1).to_dict()["summary"] == (
        "24 independent spikes in 1 days, enough for one-feature models; about 2 more days for HAR"
    )
    assert span(31).to_dict()["summary"] == "744 independent spikes in 31 days, enough for boosted trees"


def test_a_storm_of_rows_is_few_independent_spikes() -> None:
    """Spikes of a whole day without pause: thousands of rows, one event, one independent block."""
    storm = span(20, every=14_400, length=1_440)
    assert (storm.positives, storm.events) == (2_880, 2)
    assert storm.block_s > 12 * 3_600
    assert storm.positive_blocks <= 6 < storm.spikes_apart
    assert storm.effective_positives < 10


def test_memory_is_the_length_of_what_repeats() -> None:
    """A coin tossed every 30 min and kept: each toss says as much as all of its rows."""
    rng = np.random.default_rng(3)
    y = np.repeat(rng.random(4_000) < 0.3, 30)
    t_ns = np.arange(y.size, dtype=np.int64) * MINUTE
    product = np.full(y.size, "A", dtype=object)
    sigma = np.repeat(np.exp(rng.normal(size=4_000)), 30)
    found = assess(t_ns, y, sigma, product, bar_ns=MINUTE, horizon_ns=5 * MINUTE, features=9)
    assert found.memory_s == pytest.approx(1_800, rel=0.1)
    assert found.effective_rows == pytest.approx(4_000, rel=0.1)
    assert found.effective_positives == pytest.approx(1_200, rel=0.15)
    assert found.block_s == 2 * found.memory_s


def test_a_product_that_moves_with_another_adds_nothing() -> None:
    one, two = span(3), span(3, products=("A", "B"))
    assert (two.rows, two.positives, two.events) == (2 * one.rows, 2 * one.positives, 2 * one.events)
    same = ("supports", "days", "spikes_apart", "blocks", "positive_blocks", "effective_positives", "missing")
    assert all(getattr(one, name) == getattr(two, name) for name in same)


times = st.lists(st.integers(0, 60), max_size=9, unique=True).map(sorted)


@settings(max_examples=100, deadline=None)
@given(times, st.integers(1, 20), st.integers(0, 10**6))
def test_no_choice_of_times_apart_is_larger(found: list[int], apart: int, origin: int) -> None:
    best = max(
        len(chosen)
        for size in range(len(found) + 1)
        for chosen in combinations(found, size)
        if all(later - earlier >= apart for earlier, later in pairwise(chosen))
    )
    t_ns = (np.array(found, dtype=np.int64) + origin) * MINUTE
    assert count_apart(t_ns, apart * 60.0) == best


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    hours=st.integers(2, 2_000),
    share=st.floats(0, 1),
    features=st.integers(1, 120),
)
def test_more_rows_never_support_less_and_their_order_is_no_matter(
    seed: int, hours: int, share: float, features: int
) -> None:
    rng = np.random.default_rng(seed)
    t_ns = np.arange(hours, dtype=np.int64) * HOUR
    t_ns, product = np.tile(t_ns, 2), np.repeat(np.array(["A", "B"], dtype=object), hours)
    y = rng.random(t_ns.size) < rng.random()
    sigma = np.exp(rng.normal(size=t_ns.size))

    def of(rows: np.ndarray) -> Sufficiency:
        return assess(
            t_ns[rows],
            y[rows],
            sigma[rows],
            product[rows],
            bar_ns=HOUR,
            horizon_ns=HOUR,
            features=features,
        )

    whole = of(np.arange(t_ns.size))
    part = of(np.flatnonzero((rng.random(t_ns.size) < share) | (t_ns == 0)))
    assert ORDER.index(part.supports) <= ORDER.index(whole.supports)
    assert part.spikes_apart <= whole.spikes_apart
    shuffled = of(rng.permutation(t_ns.size)).to_dict()
    expected = whole.to_dict()
    assert {name: shuffled[name] for name in expected if isinstance(expected[name], int | str | list)} == {
        name: value for name, value in expected.items() if isinstance(value, int | str | list)
    }
    assert shuffled["memory_s"] == pytest.approx(expected["memory_s"], rel=1e-6)


def test_a_problem_is_assessed_on_its_training_rows() -> None:
    problem = make_problem(9_000, seed=2)
    train, y = problem.part(problem.split.train)
    found = assess_training(problem)
    assert (found.rows, found.positives) == (len(train), int(y.sum()))
    assert found.features == train.features.shape[1]
    assert found.products == ("BTC-USD", "ETH-USD")
    assert found.days == pytest.approx(np.unique(train.t_ns).size / 86_400)
    assert found.supports == "none"
    assert found.to_dict()["summary"] == found.summary
