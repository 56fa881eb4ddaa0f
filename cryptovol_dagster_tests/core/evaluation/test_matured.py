"""Scores of the model in force are measured on what they were put to; intervals where that suffices."""

from __future__ import annotations

import json

import numpy as np

from cryptovol_dagster.core.evaluation.matured import (
    CHAMPION,
    PERSISTENCE,
    Performance,
    measure,
    scaled_volatility,
    thinned,
)
from cryptovol_dagster.core.metrics.ranking import average_precision
from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.specs import NS

BAR_S, HORIZON_S = 5, 60


def _rows(hours: float, seed: int = 1, first_bar: int = 1_000) -> ScoredRows:
    """A spike of five minutes each half hour; the champion knows, persistence is blind."""
    random = np.random.default_rng(seed)
    bars = int(hours * 3_600 / BAR_S)
    y = (np.arange(bars) // 60) % 6 == 5
    scores = {CHAMPION: np.clip(0.05 + 0.8 * y + random.normal(0, 0.02, bars), 0, 1)}
    scores[PERSISTENCE] = random.random(bars)
    return ScoredRows((first_bar + np.arange(bars)) * BAR_S * NS, BAR_S * NS, y, scores)


def _measure(rows: ScoredRows) -> Performance:
    return measure(rows, horizon_s=HORIZON_S, resamples=50, seed=3)


def test_an_hour_is_too_little_and_keeps_its_numbers_and_a_day_has_intervals() -> None:
    hour, day = _measure(_rows(1)), _measure(_rows(24))
    assert (hour.verdict, hour.reasons) == (
        "insufficient_data",
        ("2 blocks of 30 min with a spike, 10 are needed",),
    )
    assert hour.average_precision == (1.0, None)
    assert (hour.rows, hour.positives, hour.base_rate) == (720, 120, 1 / 6)
    assert (day.verdict, day.reasons, day.positive_blocks) == ("ok", (), 48)
    gain = day.over_persistence
    assert gain.estimate is not None
    assert gain.interval is not None
    assert gain.interval.low <= gain.estimate <= gain.interval.high
    assert gain.interval.low > 0.7
    assert day.brier is not None
    assert 0.0 < day.brier < 0.05
    assert day.measured_on == (
        "17,280 rows, one every 5 s, 1970-01-01T01:23:20Z … 1970-01-02T01:23:15Z; "
        "2,880 spikes in 48 blocks of 30 min"
    )


def test_rows_of_one_class_or_none_have_no_ranking_and_say_why() -> None:
    rows = _rows(24)
    calm = _measure(ScoredRows(rows.t_ns, rows.bar_ns, np.zeros_like(rows.y), rows.scores))
    assert calm.average_precision == calm.over_persistence == (None, None)
    assert calm.reasons[0] == "0 spikes, 30 are needed"
    wild = _measure(ScoredRows(rows.t_ns, rows.bar_ns, np.ones_like(rows.y), rows.scores))
    assert (wild.verdict, wild.reasons) == ("insufficient_data", ("the 17280 rows are all spikes",))
    nothing = _measure(_rows(0))
    assert (nothing.rows, nothing.base_rate, nothing.brier) == (0, None, None)
    assert nothing.measured_on == "no rows"
    json.dumps([calm.to_dict(), nothing.to_dict()], allow_nan=False)


def test_spans_thinned_apart_are_the_whole_thinned() -> None:
    whole = _rows(2, first_bar=1_003)
    cut = [
        ScoredRows(whole.t_ns[part], whole.bar_ns, whole.y[part], {})
        for part in np.split(np.arange(1_440), [601])
    ]
    pieces = np.concatenate([thinned(piece, 7).t_ns for piece in cut])
    found = thinned(whole, 7)
    assert found.t_ns.tolist() == pieces.tolist()
    assert set(np.diff(found.t_ns)) == {found.bar_ns} == {7 * BAR_S * NS}
    assert thinned(whole, 1) is whole
    # Every seventh of neighbours that say nearly the same ranks as all of them.
    all_rows, some = _measure(_rows(24)), _measure(thinned(_rows(24), 7))
    assert some.rows * 7 - all_rows.rows in range(-6, 7)
    assert some.base_rate is not None
    assert abs(some.base_rate - 1 / 6) < 0.01


def test_volatility_of_different_products_ranks_by_their_own_thresholds() -> None:
    sigma, product = np.array([4.0, 3.0, np.nan]), np.array(["wild", "calm", "calm"], dtype=object)
    scaled = scaled_volatility(sigma, product, {"wild": 8.0, "calm": 2.0})
    assert scaled.tolist() == [0.5, 1.5, 0.0]
    assert average_precision(np.array([False, True, False]), scaled) == 1.0
