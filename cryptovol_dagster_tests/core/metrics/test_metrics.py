"""Metrics against slow, obvious definitions and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from cryptovol_dagster.core.metrics import probabilities
from cryptovol_dagster.core.metrics.bootstrap import (
    BlockBootstrap,
    block_length_s,
    count_positive_blocks,
    interval,
)
from cryptovol_dagster.core.metrics.events import Event, Market, alert_budget_threshold
from cryptovol_dagster.core.metrics.ranking import (
    Ranking,
    average_precision,
    best_f1_threshold,
    roc_auc,
    time_shift_null,
)
from cryptovol_dagster.core.specs import NS

MINUTE = 60 * NS


def slow_average_precision(y: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float:
    """Walk down the distinct scores; each adds its gain in recall times the precision there. O(n²)."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        flagged = score >= threshold
        recall = weight[flagged & y].sum() / weight[y].sum()
        if weight[flagged].sum():
            total += (recall - before) * weight[flagged & y].sum() / weight[flagged].sum()
        before = recall
    return total


@st.composite
def scored_labels(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    size = draw(st.integers(2, 60))
    y = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    # Few distinct scores, so that ties are the rule.
    score = np.array(draw(st.lists(st.integers(0, 8), min_size=size, max_size=size))) / 8
    y[:2] = [True, False]
    return y, score


@settings(max_examples=150, deadline=None)
@given(scored_labels(), st.integers(0, 2**32))
def test_average_precision_equals_the_slow_one(case: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    y, score = case
    weight = np.random.default_rng(seed).integers(0, 3, y.size).astype(np.int32)
    weight[0] = 1
    ranking = Ranking(y, score)
    ones = np.ones(y.size)
    assert ranking.average_precision() == pytest.approx(slow_average_precision(y, score, ones), abs=1e-12)
    assert ranking.average_precision() == pytest.approx(average_precision_score(y, score), abs=1e-12)
    expected = slow_average_precision(y, score, weight)
    assert ranking.average_precision(weight) == pytest.approx(expected, abs=1e-12)


def test_chance_under_serial_dependence_is_what_shifted_labels_give() -> None:
    rng = np.random.default_rng(5)
    y = np.repeat(rng.random(200) < 0.1, 50)  # episodes of 50 rows
    product = np.where(np.arange(y.size) % 2, "A", "B").astype(object)
    knows = y + rng.normal(0, 0.5, y.size)
    skilled = time_shift_null(y, knows, product, shifts=40)
    assert skilled is not None
    assert (skilled.shifts, skilled.share_at_or_above) == (40, 0.0)
    shift = int(0.15 * y.size / 2)
    moved = y.copy()
    for name in ("A", "B"):
        moved[product == name] = np.roll(y[product == name], shift)
    one = time_shift_null(y, knows, product, shifts=1)
    assert one is not None
    assert one.mean == pytest.approx(average_precision_score(moved, knows), abs=1e-12)


def test_scores_of_another_market_are_not_above_chance() -> None:
    """Persistent scores without any relation: the test must not call them skill more often than it says."""
    rng = np.random.default_rng(6)
    shares = []
    for _ in range(40):
        y = np.repeat(rng.random(60) < 0.15, 50)
        score = np.repeat(rng.normal(size=60), 50)
        null = time_shift_null(y, score, np.full(y.size, "A", dtype=object), shifts=50)
        if null is not None:
            shares.append(null.share_at_or_above)
    assert np.mean(np.array(shares) < 0.05) <= 0.2
    assert 0.3 < np.mean(shares) < 0.7


def test_chance_needs_both_classes() -> None:
    assert time_shift_null(np.zeros(9, bool), np.arange(9.0), np.full(9, "A", dtype=object)) is None


@settings(max_examples=100, deadline=None)
@given(scored_labels())
def test_the_rest_agrees_with_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    y, score = case
    assert roc_auc(y, score) == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert probabilities.brier(y, score) == pytest.approx(brier_score_loss(y, score), abs=1e-12)
    inside = 0.01 + 0.98 * score
    assert probabilities.log_loss(y, inside) == pytest.approx(sklearn_log_loss(y, inside), abs=1e-12)
    best = best_f1_threshold(y, score)
    assert best is not None
    reached = f1_score(y, score >= best)
    assert reached == pytest.approx(max(f1_score(y, score >= cut) for cut in np.unique(score)), abs=1e-12)


def test_a_constant_score_has_the_base_rate_as_average_precision() -> None:
    y = np.array([True, False, False, False])
    assert average_precision(y, np.full(4, 0.3)) == 0.25
    assert roc_auc(y, np.full(4, 0.3)) == 0.5


def test_without_positives_there_is_no_ranking() -> None:
    none = np.zeros(3, dtype=bool)
    assert np.isnan(average_precision(none, np.arange(3.0)))
    assert np.isnan(roc_auc(none, np.arange(3.0)))
    assert best_f1_threshold(none, np.arange(3.0)) is None


def test_log_loss_of_a_certain_error_is_finite() -> None:
    assert probabilities.log_loss(np.array([True]), np.array([0.0])) == pytest.approx(-np.log(1e-15))


def test_reliability_bins_hold_every_row_once() -> None:
    probability = np.array([0.0, 0.05, 0.1, 0.95, 1.0])
    y = np.array([False, True, False, True, True])
    table = probabilities.reliability(y, probability)
    found = [(part.low, part.rows, part.observed) for part in table]
    assert found == [(0.0, 2, 0.5), (0.1, 1, 0.0), (0.9, 2, 1.0)]
    gaps = 2 * abs(0.025 - 0.5) + abs(0.1 - 0) + 2 * abs(0.975 - 1)
    assert probabilities.expected_calibration_error(table) == pytest.approx(gaps / 5)


def test_the_calibration_line_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(8)
    log_odds = random.normal(-2, 1.5, 3_000)
    y = random.random(3_000) < 1 / (1 + np.exp(-(0.5 + 0.7 * log_odds)))
    found = probabilities.calibration_line(y, 1 / (1 + np.exp(-log_odds)))
    assert found is not None
    fitted = LogisticRegression(C=1e12, tol=1e-10, max_iter=1_000).fit(log_odds[:, None], y)
    assert found.slope == pytest.approx(fitted.coef_[0, 0], abs=1e-4)
    assert found.intercept == pytest.approx(fitted.intercept_[0], abs=1e-4)
    assert found.slope == pytest.approx(0.7, abs=0.1)


@settings(max_examples=100, deadline=None)
@given(scored_labels(), st.floats(1e-9, 1))
def test_a_calibration_line_leaves_nothing_of_the_error(
    case: tuple[np.ndarray, np.ndarray], width: float
) -> None:
    """At the summit the errors add up to nothing, alone and times the log-odds, however small those are."""
    y, score = case
    probability = 0.3 + 0.6 * width * score
    found = probabilities.calibration_line(y, probability)
    if found is not None:
        log_odds = np.log(probability / (1 - probability))
        error = y - 1 / (1 + np.exp(-(found.intercept + found.slope * log_odds)))
        assert abs(error.sum()) < 1e-5
        assert abs((error * (log_odds - log_odds.mean())).sum()) < 1e-5 * log_odds.std()


@pytest.mark.parametrize(
    ("y", "probability"),
    [
        ([0, 0, 0], [0.1, 0.5, 0.9]),  # a single class
        ([0, 1, 0], [0.3, 0.3, 0.3]),  # nothing to tell apart
        ([0, 0, 1], [0.1, 0.5, 0.9]),  # separated: the slope has no end
        ([1, 1, 0], [0.1, 0.5, 0.9]),  # separated the wrong way round
    ],
)
def test_there_may_be_no_calibration_line(y: list[int], probability: list[float]) -> None:
    assert probabilities.calibration_line(np.array(y, dtype=bool), np.array(probability)) is None


# --- bootstrap --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 1_000))
def test_a_resample_is_circular_blocks_as_long_as_the_span(slots: int, block: int, seed: int) -> None:
    t_ns = np.arange(slots, dtype=np.int64) * MINUTE
    bootstrap = BlockBootstrap(t_ns, MINUTE, block * 60, 5, seed)
    random = np.random.default_rng(seed)
    length = min(block, slots)
    for weight in bootstrap.weights():
        assert weight.sum() == slots
        # The slow way: lay the same blocks end to end, around the corner, and cut at the span's length.
        starts = random.integers(0, slots, -(-slots // length))
        drawn = [(start + k) % slots for start in starts for k in range(length)][:slots]
        assert weight.tolist() == np.bincount(drawn, minlength=slots).tolist()


def test_products_are_resampled_together_and_gaps_stay_empty() -> None:
    times = np.array([0, 0, 1, 1, 7, 7, 8, 8], dtype=np.int64) * MINUTE
    for weight in BlockBootstrap(times, MINUTE, 120, 20, 3).weights():
        assert weight.size == 8
        assert (weight[0::2] == weight[1::2]).all()


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    t_ns = np.arange(400, dtype=np.int64) * MINUTE
    large_y = random.random(200_000) < 0.2
    truth = average_precision(large_y, random.normal(size=200_000) + large_y)
    covered = 0
    for trial in range(40):
        y = random.random(400) < 0.2
        score = random.normal(size=400) + y
        resampled = BlockBootstrap(t_ns, MINUTE, 300, 100, trial).average_precisions(y, {"m": score})["m"]
        low, high = interval(resampled)
        covered += low <= truth <= high
    assert covered >= 33


def test_the_paired_difference_of_equal_models_is_zero() -> None:
    random = np.random.default_rng(1)
    y = random.random(500) < 0.2
    score = random.random(500)
    t_ns = np.arange(500, dtype=np.int64) * NS
    result = BlockBootstrap(t_ns, NS, 50, 20, 1).average_precisions(y, {"a": score, "b": 2 * score + 1})
    np.testing.assert_array_equal(result["a"], result["b"])


def test_a_part_of_the_rows_is_resampled_with_all() -> None:
    """The resamples of onset rows are those of all rows: weights by bar, whatever rows are asked for."""
    random = np.random.default_rng(2)
    t_ns = np.repeat(np.arange(300, dtype=np.int64) * MINUTE, 2)
    y, score = random.random(600) < 0.2, random.integers(0, 40, 600) / 40
    part = random.random(600) < 0.6
    bootstrap = BlockBootstrap(t_ns, MINUTE, 900, 8, 4)
    found = bootstrap.average_precisions(y, {"m": score}, part)["m"]
    for precision, weight in zip(found, bootstrap.weights(), strict=True):
        expected = slow_average_precision(y[part], score[part], weight[part])
        assert precision == pytest.approx(expected, abs=1e-12)
    none = bootstrap.average_precisions(np.zeros(600, dtype=bool), {"m": score})["m"]
    assert np.isnan(none).all()


def test_blocks_grow_with_horizon_and_span() -> None:
    assert block_length_s(60, 7_200) == 1_800
    assert block_length_s(900, 86_400) == 4_500
    assert block_length_s(60, 10 * 86_400) == 86_400


def test_positive_blocks_are_counted_by_time() -> None:
    t_ns = np.array([0, 1, 29, 30, 31, 95], dtype=np.int64) * MINUTE
    y = np.array([False, True, True, False, True, True])
    assert count_positive_blocks(t_ns, y, 1_800) == 3
    assert count_positive_blocks(t_ns, np.zeros(6, dtype=bool), 1_800) == 0


# --- events and alarms ------------------------------------------------------------------------------------


def market_of(y: list[int], *, visible: list[int] | None = None, times: list[int] | None = None) -> Market:
    """One product, one row a minute, H = 2 min."""
    return Market(
        product=np.array(["A"] * len(y), dtype=object),
        t_ns=np.array(times or range(len(y)), dtype=np.int64) * MINUTE,
        y=np.array(y, dtype=bool),
        visible=np.array(visible or [0] * len(y), dtype=bool),
        bar_ns=MINUTE,
        horizon_ns=2 * MINUTE,
    )


def test_runs_merge_over_gaps_of_at_most_the_horizon() -> None:
    market = market_of([0, 1, 0, 1, 0, 0, 1, 1, 0])
    events = market.events()
    assert events == [Event("A", MINUTE, 3 * MINUTE), Event("A", 6 * MINUTE, 7 * MINUTE)]
    assert market.in_event(events).tolist() == [bool(k) for k in (0, 1, 1, 1, 0, 0, 1, 1, 0)]
    assert market_of([0, 0]).events() == []


def test_events_of_two_products_do_not_merge() -> None:
    market = Market(
        product=np.array(["A", "B"], dtype=object),
        t_ns=np.zeros(2, dtype=np.int64),
        y=np.ones(2, dtype=bool),
        visible=np.zeros(2, dtype=bool),
        bar_ns=NS,
        horizon_ns=NS,
    )
    assert market.events() == [Event("A", 0, 0), Event("B", 0, 0)]
    assert market.in_event([Event("A", 0, 0)]).tolist() == [True, False]
    assert market.hours == pytest.approx(1 / 3_600)


def test_alarms_rest_five_minutes() -> None:
    market = market_of([0] * 12)
    flagged = np.array([0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1], dtype=bool)
    assert market.alarms(flagged).tolist() == [1, 6, 11]
    assert market.alarms(np.zeros(12, dtype=bool)).tolist() == []


def test_delay_and_lead_of_the_first_flag() -> None:
    market = market_of([0, 1, 1, 1, 1, 0], visible=[0, 0, 0, 1, 1, 1])
    (first,) = market.first_flags(np.array([1, 0, 1, 0, 0, 0], dtype=bool), market.events())
    assert (first.delay_s, first.lead_s) == (60, 60)
    (late,) = market.first_flags(np.array([0, 0, 0, 0, 1, 0], dtype=bool), market.events())
    assert (late.delay_s, late.lead_s) == (180, -60)
    assert market.first_flags(np.array([1, 0, 0, 0, 0, 1], dtype=bool), market.events()) == []


def test_the_lead_is_unknown_where_the_spike_never_shows() -> None:
    market = market_of([0, 1, 1, 0])
    (first,) = market.first_flags(np.array([0, 1, 0, 0], dtype=bool), market.events())
    assert first.lead_s is None


def test_a_flag_before_the_event_is_a_false_alarm_and_still_rings_when_it_comes() -> None:
    """A day by hand, H = 2 min: an alarm at minute 1, the event from 3 to 6, a lone alarm at minute 12.

    The alarm of minute 1 is false and rests until minute 6, so the event's own flags ring nothing new; what
    they are worth is counted by flags. The next row flagged after the rest is minute 12, and false too.
    """
    market = market_of([0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0], visible=[0] * 5 + [1] * 8)
    flagged = np.array([0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1], dtype=bool)
    events = market.events()
    assert events == [Event("A", 3 * MINUTE, 6 * MINUTE)]
    alarms = market.alarms(flagged)
    assert alarms.tolist() == [1, 12]
    assert (~market.in_event(events)[alarms]).tolist() == [True, True]
    (first,) = market.first_flags(flagged, events)
    assert (first.delay_s, first.lead_s) == (60, 60)
    assert market.hours == pytest.approx(13 / 60)


def test_each_product_rests_by_itself_and_an_hour_of_both_is_one_hour() -> None:
    times = np.repeat(np.arange(60, dtype=np.int64) * MINUTE, 2)
    market = Market(
        product=np.tile(np.array(["A", "B"], dtype=object), 60),
        t_ns=times,
        y=np.zeros(120, dtype=bool),
        visible=np.zeros(120, dtype=bool),
        bar_ns=MINUTE,
        horizon_ns=MINUTE,
    )
    flagged = np.zeros(120, dtype=bool)
    flagged[[0, 1, 2, 3, 11]] = True  # A at 0 and 1, B at 0, 1 and 5
    assert market.alarms(flagged).tolist() == [0, 1, 11]
    assert market.hours == 1


def test_the_alert_budget_is_kept_and_used() -> None:
    random = np.random.default_rng(4)
    n = 2_000
    y = (np.arange(n) // 50 % 8 == 0).tolist()
    market = market_of(y)
    score = random.random(n) + 0.3 * market.y
    inside = market.in_event(market.events())

    def false_alarms_per_hour(threshold: float) -> float:
        return np.count_nonzero(~inside[market.alarms(score >= threshold)]) / market.hours

    tight = alert_budget_threshold(market, score, 0.5)
    loose = alert_budget_threshold(market, score, 5.0)
    assert tight is not None
    assert loose is not None
    assert tight > loose
    assert false_alarms_per_hour(tight) <= 0.5
    assert false_alarms_per_hour(loose) <= 5.0
    assert false_alarms_per_hour(loose) > 2.0


def test_no_threshold_fits_when_the_highest_score_is_already_too_loud() -> None:
    market = market_of([0] * 30)
    assert alert_budget_threshold(market, np.zeros(30), 1.0) is None
