"""Outcomes of published scores, by hand and against scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from cryptovol_dagster.core.live.outcomes import (
    MODEL,
    Outcome,
    Thresholds,
    measure_outcome,
    settle,
    with_outcomes,
)
from cryptovol_dagster.core.specs import NS

BTC, ETH = "BTC-USD", "ETH-USD"
OLD, NEW = ("ewma", "2026-04-04-02:00", "1"), ("xgboost", "2026-04-04-03:00", "2")
#: A volatility of 2 is a spike of the old model, not of the new one.
THRESHOLDS = Thresholds({OLD: {BTC: 1.0, ETH: 1.0}, NEW: {BTC: 3.0}}, {})


def _score(
    bar: int,
    *,
    after: float = 2.0,
    p: float | None = 0.5,
    revision: int = 0,
    reason: str = "",
    product: str = BTC,
    model: tuple[str, ...] = OLD,
    flag: bool | None = None,
    episode: str | None = None,
) -> dict:
    return {
        "product_id": product,
        "bar_end_ns": bar * NS,
        "revision": revision,
        "published_at_ns": int((bar + after) * NS),
        "probability": np.nan if p is None else p,
        "reason": reason or "ok",
        "flag": flag,
        "episode": episode,
        **dict(zip(MODEL, model, strict=True)),
    }


def _rows(
    scores: Sequence[dict],
    sigma: Sequence[float],
    *,
    trailing: Sequence[float] | None = None,
    product: str = BTC,
    thresholds: Thresholds = THRESHOLDS,
) -> pd.DataFrame:
    """Join scores with labels of bars 0, 1, 2, … of one product; a score counts until 3 s after its bar."""
    frame = pd.DataFrame(scores)
    settled = settle(frame, frame["bar_end_ns"].to_numpy() + 3 * NS)
    settled["bar_end_wall_ns"] = settled.index.get_level_values("bar_end_ns")
    labels = pd.DataFrame(
        {
            "product_id": product,
            "bar_end_ns": NS * np.arange(len(sigma)),
            "sigma": sigma,
            "trailing_sigma": np.zeros(len(sigma)) if trailing is None else trailing,
        }
    )
    return with_outcomes(labels, settled, thresholds)


def _measured(rows: pd.DataFrame, *, horizon_s: int = 2, resamples: int = 0) -> Outcome:
    return measure_outcome(rows, bar_ns=NS, horizon_ns=horizon_s * NS, resamples=resamples, seed=7)


def test_the_last_revision_published_in_time_counts_and_the_last_of_all_is_final() -> None:
    scores = [
        _score(0, p=0.3, revision=1, after=2.8),
        _score(0, p=0.1, after=2.0),
        _score(0, p=0.9, revision=2, after=3.5),
        _score(1, p=0.4, after=3.0),  # at the deadline is in time
        _score(2, p=0.6, after=3.1),
        _score(3, p=None, reason="cross_incomplete"),
        _score(3, p=0.7, revision=1, after=9),
    ]
    rows = _rows(scores, [0, 0, 0, 0, 0])
    assert rows["state"].tolist() == ["scored", "scored", "too_late", "cross_incomplete", "not_published"]
    np.testing.assert_array_equal(rows["probability"], [0.3, 0.4, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(rows["final_probability"], [0.9, 0.4, 0.6, 0.7, np.nan])
    found = _measured(rows)
    assert (found.rows, found.scored, found.share_scored) == (5, 2, 0.4)
    assert found.not_scored == {"cross_incomplete": 1, "not_published": 1, "too_late": 1}
    assert (found.delay.rows, found.delay.p50_s, found.delay.max_s) == (4, pytest.approx(2.5), 3.1)
    moved = found.revisions
    assert (moved.rows, moved.revised, moved.per_row, moved.moved) == (4, 2, 0.75, 1)
    assert moved.moved_p99 == pytest.approx(0.8)
    assert moved.after_deadline == 2


def test_of_equal_revisions_the_one_published_last_counts_and_none_is_a_revision() -> None:
    scores = [_score(0, p=0.2, after=2.5), _score(0, p=0.1, after=2.0), _score(0, p=0.3, after=5.0)]
    row = _rows(scores, [0]).iloc[0]
    assert (row["probability"], row["final_probability"], row["revisions"]) == (0.2, 0.3, 0)


def test_each_row_is_labelled_by_the_model_that_published_it() -> None:
    scores = [_score(0), _score(1), _score(3, model=NEW), _score(4, model=NEW)]
    rows = _rows(scores, [2, np.nan, 2, 2, 4], trailing=[0, 2, 2, 2, np.nan])
    assert rows["known"].tolist() == [True, False, True, True, True]
    # The third row was not scored: the model before it labels it.
    assert rows["y"].tolist() == [True, False, True, False, True]
    assert rows["visible"].tolist() == [False, True, True, False, False]
    assert rows["onset"].tolist() == [True, False, False, True, False]
    np.testing.assert_allclose(rows["persistence"], [0, 2, 2, 2 / 3, 0])


def test_a_model_without_thresholds_or_of_another_product_labels_nothing() -> None:
    scores = [_score(0, model=NEW, product=ETH), _score(1, product=ETH, model=("gone", "", ""))]
    rows = _rows(scores, [9, 9], product=ETH)
    assert not rows["known"].to_numpy().any()
    found = _measured(rows)
    assert (found.scored, found.labelled) == (2, 0)
    assert found.quality["average_precision"] == {"estimate": None, "interval": None}
    assert found.quality["brier"] is None
    assert found.quality["reasons"][0] == "0 spikes, 30 are needed"


def test_one_class_is_null_with_its_reason() -> None:
    found = _measured(_rows([_score(bar) for bar in range(40)], [2.0] * 40))
    assert (found.quality["average_precision"]["estimate"], found.quality["brier"]) == (None, 0.25)
    assert "the 40 rows are all spikes" in found.quality["reasons"]


def test_alarms_lead_and_episodes_by_hand() -> None:
    # Spikes at bars 4 to 6, visible from 6 on; a flag at 2 (an episode that is false), flags from 3 on.
    n, sigma = 20, np.zeros(20)
    sigma[4:7], sigma[19] = 2.0, np.nan
    trailing = np.where(np.arange(n) >= 6, 2.0, 0.0)

    def score(bar: int) -> dict:
        name = None if bar not in (1, 3, 4, 5) else f"seconds/{BTC}/{NS * (1 if bar == 1 else 3)}"
        return _score(bar, p=0.9 if name else 0.1, flag=name is not None, episode=name)

    rows = _rows([score(bar) for bar in range(n)], sigma.tolist(), trailing=trailing.tolist())
    found = _measured(rows)
    alerts = found.alerts
    # The alarm at 1 keeps the following five minutes silent, so it is the only one, and false.
    assert (alerts.alarms, alerts.true, alerts.false, alerts.unknown) == (1, 0, 1, 0)
    assert alerts.a_day == pytest.approx(86_400 / n)
    assert (alerts.precision, alerts.events, alerts.events_found, alerts.lead_p50_s) == (0.0, 1, 1, 2.0)
    assert found.episodes.opened == 2
    assert (found.episodes.true, found.episodes.false, found.episodes.undecided) == (1, 1, 0)
    assert (found.episodes.events, found.episodes.missed, found.episodes.lead_p50_s) == (1, 0, 3.0)


def test_an_episode_of_before_finds_its_spike_but_is_counted_where_it_opened() -> None:
    name = f"seconds/{BTC}/{-5 * NS}"
    scores = [_score(bar, p=0.9, episode=name if bar < 3 else None) for bar in range(6)]
    found = _measured(_rows(scores, [0, 2, 2, 0, 0, 0])).episodes
    assert (found.opened, found.events, found.missed) == (0, 1, 0)
    still_open = [
        _score(bar, p=0.9, episode=f"seconds/{BTC}/{4 * NS}" if bar > 3 else None) for bar in range(6)
    ]
    found = _measured(_rows(still_open, [0, 0, 0, 0, 0, 0])).episodes
    assert (found.opened, found.undecided, found.false) == (1, 1, 0)


def test_without_an_operating_point_there_are_no_alarms_and_a_reason() -> None:
    assert _measured(_rows([_score(0)], [0])).alerts.reason == "no published score has an operating point"
    nothing = _measured(_rows([_score(0, p=None, reason="no_model")], [0])).alerts
    assert (nothing.reason, nothing.alarms) == ("no row was scored", None)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.sampled_from([None, 0.1, 0.25, 0.5, 0.5, 0.8, 1.0]),
            st.sampled_from([1.0, 2.9, 3.0, 3.1, 60.0]),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_average_precision_is_that_of_scikit_learn_on_what_counted(
    bars: list[tuple[bool, float | None, float]],
) -> None:
    scores = [_score(bar, p=p, after=after) for bar, (_, p, after) in enumerate(bars)]
    rows = _rows(scores, [2.0 if spike else 0.0 for spike, _, _ in bars])
    counted = [(spike, p) for spike, p, after in bars if p is not None and after <= 3.0]
    found = _measured(rows)
    assert found.scored == len(counted)
    spikes = [spike for spike, _ in counted]
    estimate = found.quality["average_precision"]["estimate"]
    if any(spikes) and not all(spikes):
        expected = average_precision_score(spikes, [p for _, p in counted])
        assert estimate == pytest.approx(expected, abs=1e-12)
    else:
        assert estimate is None


def test_nothing_published_is_measured_without_numbers() -> None:
    rows = _rows([_score(9)], [0.0, 2.0])
    found = _measured(rows)
    assert (found.rows, found.scored, found.share_scored) == (2, 0, 0.0)
    assert found.not_scored == {"not_published": 2}
    assert (found.delay.p50_s, found.revisions.per_row) == (None, None)
