"""When a challenger is analyzed, at which level, and how often an equal model is promoted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, t

from benchmarks import gate as bench
from cryptovol_dagster.core.metrics.bootstrap import BlockBootstrap
from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.promotion.gate import (
    InterimAnalysis,
    analysis_level,
    independent_block_s,
    is_analysis_due,
    is_final_analysis,
    paired_difference,
    still_counted,
    why_insufficient,
)
from cryptovol_dagster.core.specs import NS, GateSpec

DAY_NS = 86_400 * NS
GATE = GateSpec(resamples=60)


def analyses_of_a_pair(gate: GateSpec, days: int, every: int = 1) -> list[int]:
    looked, found = None, []
    for day in range(every, days + 1, every):
        if is_analysis_due(0, looked, day * DAY_NS, gate):
            looked = day * DAY_NS
            found.append(day)
    return found


def test_a_pair_is_analyzed_again_when_its_hold_out_has_doubled() -> None:
    assert analyses_of_a_pair(GATE, 28) == [1, 2, 4, 8, 16, 28]
    assert [is_final_analysis(0, day * DAY_NS, GATE) for day in (16, 27, 28)] == [False, False, True]
    assert analyses_of_a_pair(GateSpec(measured_for_s=90 * 86_400), 90, every=30) == [30, 60, 90]


def test_a_month_of_analyses_spends_no_more_than_it_accrued() -> None:
    spent: tuple[InterimAnalysis, ...] = ()
    looked = None
    for day in analyses_of_a_pair(GATE, 28):
        level = analysis_level(0, looked, day * DAY_NS, spent, GATE)
        looked = day * DAY_NS
        spent = (*still_counted(spent, looked, GATE), InterimAnalysis(looked, level))
    assert spent[0].level == pytest.approx(0.025 / 30)
    assert sum(one.level for one in spent) == pytest.approx(0.025 * 28 / 30)


@given(
    st.lists(st.tuples(st.floats(0.01, 40), st.floats(0, 40)), min_size=1, max_size=40),
    st.floats(0.001, 0.2),
)
def test_within_any_window_no_more_is_spent_than_the_rate(
    steps: list[tuple[float, float]], rate: float
) -> None:
    """Whatever the pairs, their hold-outs and the times of analyses."""
    gate = GateSpec(error_rate=rate)
    now, spent, every = 0, (), []
    for after_days, fresh_days in steps:
        now += int(after_days * DAY_NS)
        level = analysis_level(now - int(fresh_days * DAY_NS), None, now, spent, gate)
        assert 0 <= level <= gate.most_per_look
        spent = (*still_counted(spent, now, gate), InterimAnalysis(now, level))
        every.append(InterimAnalysis(now, level))
    for last in every:
        window = [one.level for one in every if last.at_ns - 30 * DAY_NS < one.at_ns <= last.at_ns]
        assert sum(window) <= rate * (1 + 1e-9)


def noise(size: int, seed: int) -> ScoredRows:
    random = np.random.default_rng(seed)
    y = random.random(size) < 0.1
    scores = {name: random.random(size) + skill * y for name, skill in (("a", 0.4), ("b", 0.2))}
    return ScoredRows(np.arange(1, size + 1, dtype=np.int64) * 60 * NS, 60 * NS, y, scores)


def test_bounds_are_the_estimate_and_students_quantile_of_the_bootstraps_error() -> None:
    rows = noise(2_880, 3)
    block_s = independent_block_s(rows, 300, GATE)
    assert block_s == pytest.approx(2 * 86_400 / 12)
    found = paired_difference(rows, "a", "b", level=0.001, block_s=block_s, gate=GATE)
    resampled = BlockBootstrap(rows.t_ns, rows.bar_ns, block_s, GATE.resamples, GATE.seed).average_precisions(
        rows.y, rows.scores
    )
    error = np.std(resampled["a"] - resampled["b"], ddof=1)
    precision = {name: rows.average_precision(name) for name in ("a", "b")}
    assert precision["a"] is not None
    assert precision["b"] is not None
    assert found.estimate == pytest.approx(precision["a"] - precision["b"])
    assert found.low == pytest.approx(found.estimate - t.isf(0.001, 11) * error)
    assert found.high == pytest.approx(found.estimate + t.isf(0.025, 11) * error)


def test_a_model_and_itself_do_not_differ() -> None:
    rows = noise(1_440, 4)
    same = ScoredRows(rows.t_ns, rows.bar_ns, rows.y, {"a": rows.scores["a"], "b": rows.scores["a"]})
    found = paired_difference(same, "a", "b", level=0.01, block_s=7_200, gate=GATE)
    assert (found.estimate, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize(("days", "hours"), [(0.5, 2), (1, 2), (3, 6), (9, 18), (10, 24), (28, 24)])
def test_blocks_are_two_hours_a_twelfth_of_the_span_or_a_day(days: float, hours: float) -> None:
    size = int(days * 1_440)
    t_ns = np.arange(1, size + 1, dtype=np.int64) * 60 * NS
    rows = ScoredRows(t_ns, 60 * NS, np.zeros(size, bool), {})
    assert independent_block_s(rows, 300, GATE) == hours * 3_600
    # Five horizons of a slow timescale are longer.
    assert independent_block_s(rows, 36_000, GATE) >= 180_000


def test_without_rows_nothing_can_be_said() -> None:
    rows = ScoredRows(np.empty(0, np.int64), 60 * NS, np.empty(0, bool), {"a": np.empty(0)})
    assert (rows.average_precision("a"), rows.brier("a")) == (None, None)
    assert why_insufficient(rows, independent_block_s(rows, 300, GATE), GATE) == [
        "0 positives in the hold-out, 30 are needed",
        "0 independent blocks of 2 h with a positive in the hold-out, 10 are needed",
    ]


def test_equal_models_are_hardly_ever_promoted_in_a_month_and_a_naive_gate_always_does() -> None:
    """A small `make bench-gate`: the numbers that count are its."""
    random = np.random.default_rng(5)
    seen, months = bench.Seen(0.6), 25
    promoted = naive = 0
    for _ in range(months):
        market = bench.synthetic(random)
        pair = bench.noise_pair(market, seen, seen, random)
        promoted += bench.month(market, *pair, GATE).promoted_on is not None
        naive += bench.naive_month(market, *pair, bound=False).promoted_on is not None
    # More than this comes up once in a thousand times at 5 %.
    assert promoted <= binom.isf(0.001, months, 0.05)
    assert naive > months / 2


def test_a_much_better_model_is_promoted_within_the_month() -> None:
    random = np.random.default_rng(6)
    market = bench.synthetic(random)
    pair = bench.noise_pair(market, bench.Seen(1.6), bench.Seen(0.2), random)
    found = bench.month(market, *pair, GATE)
    assert found.promoted_on is not None
    rare = bench.month(market, *pair, GATE, retrain_days=30)
    assert (rare.promoted_on, rare.analyses) == (30, 1)
