"""Episodes: stepped and replayed alike, stored and resumed, and compared with the spikes that came."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from cryptovol_dagster.core.metrics.episodes import (
    Episode,
    EpisodeChange,
    EpisodeError,
    EpisodeRule,
    EpisodeState,
    ScoredBars,
    compare_episodes,
    count_episodes,
    episode_id,
    match_episodes,
)
from cryptovol_dagster.core.metrics.events import Market
from cryptovol_dagster.core.specs import NS

BTC, ETH = "BTC-USD", "ETH-USD"
RULE = EpisodeRule(enter=0.5, leave=0.3, k=2, n=3, m=2, unknown_after_bars=3)
PROBABILITIES = st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0]))
RULES = st.builds(
    lambda low, high, k, more, m, unknown: EpisodeRule(high, min(low, high), k, k + more, m, unknown),
    st.sampled_from([0.1, 0.3, 0.5]),
    st.sampled_from([0.3, 0.5, 0.7]),
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(1, 4),
    st.integers(0, 4),
)


def stepped(
    rule: EpisodeRule, bars: list[tuple[int, float | None]], state: EpisodeState | None = None
) -> tuple[EpisodeState, list[EpisodeChange]]:
    """Step through bars, given by number and probability."""
    state, found = state or EpisodeState(bar_ns=NS), []
    for bar, probability in bars:
        state, changes = state.step(rule, bar * NS, probability)
        found += changes
    return state, found


def as_changes(episodes: list[Episode]) -> list[tuple[str, int, int, str | None]]:
    found = []
    for one in episodes:
        found.append(("opened", one.opened_ns, one.opened_ns, None))
        if one.closed_ns is not None:
            found.append(("closed", one.closed_ns, one.opened_ns, one.outcome))
    return found


def market(y: str, visible: str, product: str = BTC, horizon_s: int = 2) -> Market:
    names = np.array([product] * len(y), dtype=object)
    return Market(
        names,
        NS * np.arange(len(y)),
        np.array([mark == "1" for mark in y]),
        np.array([mark == "1" for mark in visible]),
        bar_ns=NS,
        horizon_ns=horizon_s * NS,
    )


def test_an_episode_opens_at_the_kth_high_bar_of_n_and_closes_at_the_mth_low_one() -> None:
    _, found = stepped(RULE, list(enumerate([0.9, 0.1, 0.1, 0.6, 0.2, 0.5, 0.2, 0.4, 0.2, 0.2, 0.9])))
    assert found == [
        ("opened", 5 * NS, 5 * NS, None, 0.5),
        ("closed", 9 * NS, 5 * NS, "ended", 0.5),
    ]


def test_high_bars_before_a_closing_do_not_open_the_next_episode() -> None:
    rule = EpisodeRule(enter=0.5, leave=0.5, k=2, n=6, m=1, unknown_after_bars=3)
    _, found = stepped(rule, list(enumerate([0.9, 0.9, 0.1, 0.9, 0.1, 0.9])))
    assert [(one.kind, one.bar_end_ns // NS) for one in found] == [
        ("opened", 1),
        ("closed", 2),
        ("opened", 5),
    ]


def test_bars_without_a_probability_neither_open_nor_close() -> None:
    bars = [0.9, None, 0.9, 0.1, None, None, None, 0.1]
    _, found = stepped(RULE, list(enumerate(bars)))
    assert [(one.kind, one.bar_end_ns // NS, one.outcome) for one in found] == [
        ("opened", 2, None),
        ("closed", 7, "ended"),
    ]


@pytest.mark.parametrize("skipped", [False, True])
def test_too_many_bars_without_a_probability_close_with_an_unknown_outcome(skipped: bool) -> None:
    hole: list[tuple[int, float | None]] = [] if skipped else [(bar, None) for bar in range(2, 7)]
    _, found = stepped(RULE, [(0, 0.9), (1, 0.8), *hole, (7, 0.9), (8, 0.9)])
    assert found == [
        ("opened", 1 * NS, 1 * NS, None, 0.8),
        ("closed", 5 * NS, 1 * NS, "unknown", 0.8),
        ("opened", 8 * NS, 8 * NS, None, 0.9),
    ]


def test_a_hole_can_close_and_its_next_bar_open() -> None:
    rule = EpisodeRule(enter=0.5, leave=0.5, k=1, n=1, m=1, unknown_after_bars=1)
    state, _ = stepped(rule, [(0, 0.9)])
    assert [one.kind for one in state.step(rule, 9 * NS, 0.7).changes] == ["closed", "opened"]


def test_another_model_with_another_rule_continues_an_open_episode() -> None:
    other = EpisodeRule(enter=0.9, leave=0.8, k=1, n=1, m=3, unknown_after_bars=0)
    state, _ = stepped(RULE, [(0, 0.6), (1, 0.6)])
    after, found = stepped(other, [(2, 0.85), (3, 0.7), (4, 0.7)], state)
    assert found == []
    assert (after.opened_ns, after.below) == (NS, 2)
    assert after.step(other, 5 * NS, 0.7).changes == (("closed", 5 * NS, NS, "ended", 0.85),)


def test_a_state_that_already_saw_more_unknown_bars_closes_at_the_next() -> None:
    other = EpisodeRule(enter=0.5, leave=0.3, k=1, n=1, m=1, unknown_after_bars=0)
    state, _ = stepped(RULE, [(0, 0.6), (1, 0.6), (2, None), (3, None)])
    assert state.step(other, 4 * NS, None).changes == (("closed", 4 * NS, NS, "unknown", 0.6),)


@settings(max_examples=300, deadline=None)
@given(RULES, st.lists(PROBABILITIES, min_size=1, max_size=60), st.data())
def test_replayed_bars_have_the_episodes_of_stepped_ones(
    rule: EpisodeRule, probabilities: list[float | None], data: st.DataObject
) -> None:
    skipped = data.draw(
        st.sets(st.integers(1, len(probabilities) - 1)) if len(probabilities) > 1 else st.just(set())
    )
    bars = [(bar, p) for bar, p in enumerate(probabilities) if bar not in skipped]
    state, found = stepped(rule, bars)
    replayed = ScoredBars(
        np.array([BTC] * len(bars), dtype=object),
        np.array([bar * NS for bar, _ in bars]),
        np.array([np.nan if p is None else p for _, p in bars]),
        NS,
    ).episodes(rule)
    assert as_changes(replayed) == [one[:4] for one in found]
    greatest = {one.opened_ns: one.greatest for one in found if one.kind == "closed"}
    if state.opened_ns is not None:
        greatest[state.opened_ns] = state.greatest
    assert {one.opened_ns: one.greatest for one in replayed} == greatest


@settings(max_examples=100, deadline=None)
@given(RULES, st.lists(PROBABILITIES, min_size=2, max_size=40), st.data())
def test_a_stored_state_continues_and_a_revised_bar_is_stepped_again(
    rule: EpisodeRule, probabilities: list[float | None], data: st.DataObject
) -> None:
    bars = list(enumerate(probabilities))
    cut = data.draw(st.integers(1, len(bars) - 1))
    state, before = stepped(rule, bars[:cut])
    stored = json.dumps(msgspec.to_builtins(state))
    again = msgspec.convert(json.loads(stored), EpisodeState)
    assert stepped(rule, bars[cut:], again)[1] == stepped(rule, bars)[1][len(before) :]
    revised = [(cut, data.draw(PROBABILITIES)), *bars[cut + 1 :]]
    assert stepped(rule, revised, state)[0] == stepped(rule, [*bars[:cut], *revised])[0]


def test_fewer_high_bars_than_a_rule_counts_open_nothing() -> None:
    rule = EpisodeRule(enter=0.5, leave=0.3, k=5, n=10, m=2, unknown_after_bars=3)
    for high in range(5):
        p = np.array([0.9] * high + [0.0] * 20)
        bars = ScoredBars(np.array([BTC] * p.size, dtype=object), NS * np.arange(p.size), p, NS)
        assert bars.episodes(rule) == []


def test_products_do_not_mix() -> None:
    names = np.array([BTC, ETH] * 3, dtype=object)
    times, p = np.repeat(NS * np.arange(3), 2), np.array([0.9, 0.1, 0.9, 0.9, 0.1, 0.8])
    assert ScoredBars(names, times, p, NS).episodes(RULE) == [
        Episode(BTC, NS, None, None, 0.9),
        Episode(ETH, 2 * NS, None, None, 0.8),
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"leave": 0.6}, "expected 0 ≤ leave ≤ enter ≤ 1, found leave 0.6, enter 0.5"),
        ({"enter": float("nan")}, "expected 0 ≤ leave ≤ enter ≤ 1"),
        ({"k": 4}, "expected 1 ≤ k ≤ n ≤ 60, found k 4, n 3"),
        ({"n": 61}, "expected 1 ≤ k ≤ n ≤ 60, found k 2, n 61"),
        ({"m": 0}, "expected m of at least 1"),
    ],
)
def test_an_impossible_rule_is_refused(changed: dict[str, float], message: str) -> None:
    with pytest.raises(EpisodeError, match=message):
        EpisodeRule(**msgspec.structs.asdict(RULE) | changed)


@pytest.mark.parametrize("bar_end_ns", [5 * NS, 4 * NS, 5 * NS + 1])
def test_a_bar_that_is_not_after_the_newest_is_refused(bar_end_ns: int) -> None:
    state, _ = stepped(RULE, [(5, 0.1)])
    with pytest.raises(EpisodeError, match="expected a bar end a multiple of 1000000000 ns after 5000000000"):
        state.step(RULE, bar_end_ns, 0.1)


def test_bars_between_two_bars_are_refused() -> None:
    with pytest.raises(EpisodeError, match="ascend by multiples of 1000000000 ns"):
        ScoredBars(np.array([BTC] * 2, dtype=object), np.array([0, NS // 2]), np.array([0.1, 0.2]), NS)


def test_lead_counts_from_the_opening_to_the_visible_spike() -> None:
    rows = market("0111100000111000", "0000111000000110")
    early = Episode(BTC, 2 * NS, 6 * NS, "ended", 0.9)
    late = Episode(BTC, 12 * NS, None, None, 0.7)
    found = compare_episodes([early, late], rows)
    assert [(one.lead_s, one.duration_s) for one in found] == [(2.0, 4.0), (1.0, None)]
    assert [one.event and one.event.start_ns // NS for one in found] == [1, 10]


def test_an_episode_is_true_where_a_row_in_it_is_inside_an_event() -> None:
    rows = market("0001100000", "0000000000")
    spans = [(0, 3), (1, 4), (4, 5), (5, 9)]
    found = [compare_episodes([Episode(BTC, a * NS, b * NS, "ended", 0.9)], rows)[0] for a, b in spans]
    assert [one.event is not None for one in found] == [False, True, True, False]
    assert {one.lead_s for one in found} == {None}  # the spike never shows
    (other,) = compare_episodes([Episode(ETH, 3 * NS, 5 * NS, "ended", 0.9)], rows)
    assert other.event is None


def test_counts_of_episodes_are_those_by_hand() -> None:
    rows = market("0110000110000000110000", "0" * 22)
    episodes = [
        Episode(BTC, 2 * NS, 3 * NS, "ended", 0.9),
        Episode(BTC, 4 * NS, 6 * NS, "unknown", 0.9),
        Episode(BTC, 6 * NS, 8 * NS, "ended", 0.9),
        Episode(BTC, 8 * NS, 9 * NS, "ended", 0.9),
    ]
    counts = count_episodes(episodes, rows)
    assert (counts.episodes, counts.true_episodes, counts.false_episodes) == (4, 3, 1)
    assert (counts.events, counts.events_found, counts.unknown_episodes) == (3, 2, 1)
    assert (counts.precision, counts.recall) == (0.75, 2 / 3)
    assert counts.f1 == 2 * 2 / (4 + 3)
    assert counts.false_episodes_per_hour == pytest.approx(3_600 / 22)
    assert (counts.median_lead_s, counts.median_duration_s) == (None, 1.0)


@settings(max_examples=100, deadline=None)
@given(st.text("01", min_size=1, max_size=40), RULES, st.data())
def test_matches_are_those_of_a_search_of_all_pairs(y: str, rule: EpisodeRule, data: st.DataObject) -> None:
    rows = market(y, "0" * len(y))
    p = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=len(y), max_size=len(y))))
    episodes = ScoredBars(rows.product, rows.t_ns, p, NS).episodes(rule)

    def meet(episode: Episode, start_ns: int, end_ns: int) -> bool:
        return episode.opened_ns <= end_ns and (episode.closed_ns is None or start_ns < episode.closed_ns)

    events = rows.events()
    found = match_episodes(episodes, rows)
    meets = [[meet(episode, one.start_ns, one.end_ns) for one in events] for episode in episodes]
    assert found.events == [
        next((one for one, is_met in zip(events, row, strict=True) if is_met), None) for row in meets
    ]
    assert found.found == sum(any(column) for column in zip(*meets, strict=True))
    pairs = maximum_bipartite_matching(csr_array(np.array(meets, dtype=np.int8))) if meets and events else []
    assert found.pairs == sum(one >= 0 for one in pairs)


def test_f1_rewards_neither_one_episode_over_all_events_nor_many_in_one() -> None:
    rows = market("1100001100001100", "0" * 16)
    over_all = count_episodes([Episode(BTC, 0, None, None, 0.9)], rows)
    assert (over_all.precision, over_all.recall, over_all.f1) == (1.0, 1.0, 2 / (1 + 3))
    many = count_episodes([Episode(BTC, at * NS, (at + 1) * NS, "ended", 0.9) for at in (0, 1)], rows)
    assert (many.precision, many.recall, many.f1) == (1.0, 1 / 3, 2 / (2 + 3))
    nothing = count_episodes([], market("000", "000"))
    assert (nothing.precision, nothing.recall, nothing.f1) == (None, None, None)


def test_ids_name_chain_product_and_first_bar() -> None:
    _, found = stepped(RULE, list(enumerate([0.9, 0.9])))
    assert episode_id("seconds", BTC, found[0].opened_ns) == "seconds/BTC-USD/1000000000"
