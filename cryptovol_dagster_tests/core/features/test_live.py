"""Live rows: however a stream is cut and closed, the last revision of each row is that of one computation."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cryptovol_dagster.core.features.catalogue import own_feature_names
from cryptovol_dagster.core.features.compute import compute_own_features
from cryptovol_dagster.core.features.grid import FeatureGrid, Reason
from cryptovol_dagster.core.features.live import LONGEST_HOLE_NS, LiveFeatures
from cryptovol_dagster.core.features.live_rows import LiveRows, PublishedRow
from cryptovol_dagster.core.market.bars import BAR_COLUMNS, BarGrid, build_bars
from cryptovol_dagster.core.market.cleaning import clean_ticks, flag_gaps
from cryptovol_dagster.core.market.ticks import TickColumns
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster_tests.core.market.builders import START_NS, random_ticks, random_trades, spec, ticks_of

SPEC = spec()
LATENESS_NS = 2 * NS
Gaps = dict[str, NDArray[np.int64]]


def stream_of(used: TimescaleSpec = SPEC, **options: Any) -> LiveFeatures:
    return LiveFeatures(used, lateness_ns=LATENESS_NS, **options)


def at_once(
    ticks: TickColumns, start_ns: int, end_ns: int, used: TimescaleSpec = SPEC
) -> tuple[BarGrid, FeatureGrid]:
    """Bars and features of everything in one go."""
    cleaned = clean_ticks(ticks, round(used.late_after_s * NS)).ticks
    bars = build_bars(cleaned, start_ns=start_ns, end_ns=end_ns, spec=used)
    return bars, compute_own_features(bars, used)


class Reader:
    """Keeps the last revision of each row, as whoever reads the topic would."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], tuple[int, bool, int, NDArray[np.float64], bool]] = {}
        self.published = self.revised = 0

    def take(self, rows: LiveRows) -> None:
        for k in range(len(rows)):
            key = rows.products[rows.product[k]], int(rows.bar_start_ns[k])
            revision = int(rows.revision[k])
            if rows.known[k]:
                assert self.rows[key][0] == revision
                continue
            before = self.rows.get(key)
            assert revision == (0 if before is None else before[0] + 1), key
            self.rows[key] = (
                revision,
                bool(rows.valid[k]),
                int(rows.reason[k]),
                rows.values[k].copy(),
                bool(rows.provisional[k]),
            )
            self.published += 1
            self.revised += revision > 0

    def assert_equals(self, grid: FeatureGrid) -> int:
        compared = 0
        for row, product in enumerate(grid.products):
            for bar, start_ns in enumerate(grid.bar_starts_ns.tolist()):
                known = self.rows.get((product, start_ns))
                if known is None:
                    # Before its first tick a product has no live rows; a grid has, and they say so.
                    assert grid.reason[row, bar] == Reason.IN_GAP, (product, bar)
                    continue
                assert known[1:3] == (grid.valid[row, bar], grid.reason[row, bar]), (product, bar)
                np.testing.assert_allclose(known[3], grid.values[:, row, bar], rtol=1e-12, atol=0)
                compared += 1
        return compared


def played(
    stream: LiveFeatures,
    reader: Reader,
    ticks: TickColumns,
    cuts: list[int],
    lost: list[int],
    gap_delay: int,
    lateness_ns: int = LATENESS_NS,
) -> Gaps:
    """Add the ticks in pieces, closing after each; a gap becomes known some ticks after it happened.

    Returns:
        The gaps that became known while the rows they change could still be revised.
    """
    edges = [0, *sorted({cut % (len(ticks) + 1) for cut in cuts}), len(ticks)]
    known: list[int] = []
    waiting = sorted(set(lost))
    for first, last in pairwise(edges):
        stream.add(ticks.take(slice(first, last)))
        for number in [number for number in waiting if number + gap_delay < last]:
            waiting.remove(number)
            more = {"c1": np.array(sorted([*known, number]), dtype=np.int64)}
            if within_reach(stream, ticks, more):
                known = more["c1"].tolist()
                stream.learn_gaps(more)
        if stream.newest_ns is not None:
            reader.take(stream.close(stream.newest_ns - lateness_ns, stream.newest_ns))
    return {"c1": np.array(known, dtype=np.int64)}


def within_reach(stream: LiveFeatures, ticks: TickColumns, gaps: Gaps) -> bool:
    """Whether bars back to the last tick before each loss may still change."""
    news = flag_gaps(ticks, gaps).gap_before & ~ticks.gap_before
    reach_ns = round(SPEC.gap_after_s * NS) + SPEC.bar_ns
    return bool((ticks.event_time_ns[news] - reach_ns >= stream.final_ns).all()) or stream.end_ns is None


@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 200), max_size=25),
    lost=st.lists(st.integers(0, 150), max_size=4),
    gap_delay=st.integers(0, 12),
    hurry_s=st.integers(-6, 2),
    more_s=st.integers(0, 20),
)
@example(seed=3, cuts=list(range(0, 200, 7)), lost=[50, 70, 71], gap_delay=5, hurry_s=0, more_s=12)
@settings(max_examples=60, deadline=None)
def test_the_last_revision_of_each_row_is_that_of_one_computation(
    seed: int, cuts: list[int], lost: list[int], gap_delay: int, hurry_s: int, more_s: int
) -> None:
    ticks = random_ticks(seed, seconds=90, per_second=1.5)
    stream, reader = stream_of(), Reader()
    # Closing seconds that have not come yet (a clock that runs ahead) only makes more revisions.
    gaps = played(stream, reader, ticks, cuts, lost, gap_delay, lateness_ns=hurry_s * NS)
    newest_ns = stream.newest_ns
    assert newest_ns is not None
    reader.take(stream.close(newest_ns + more_s * NS, newest_ns))
    assert stream.end_ns is not None
    assume(not stream.beyond_reach)

    whole = flag_gaps(ticks, gaps)
    _, grid = at_once(whole, START_NS, stream.end_ns)
    assert reader.assert_equals(grid) > 0
    assert stream.counts == clean_ticks(whole, LATENESS_NS).counts
    assert stream.restarts == 0


@given(
    seed=st.integers(0, 10_000),
    step=st.integers(5, 60),
    lag_s=st.integers(-20, 15),
    ticks_first=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_trades_count_in_the_rows_of_their_time_whenever_they_come(
    seed: int, step: int, lag_s: int, ticks_first: bool
) -> None:
    ticks = random_ticks(seed, seconds=120, per_second=2, faults=False)
    trades = random_trades(seed, seconds=120)
    stream, reader, given_until = stream_of(), Reader(), 0
    for first in range(0, len(ticks), step):
        part = ticks.take(slice(first, first + step))
        until_ns = int(part.event_time_ns[-1]) - lag_s * NS
        count = max(int(np.searchsorted(trades.trade_time_ns, until_ns)), given_until)
        news = trades.take(slice(given_until, count))
        given_until = count
        if ticks_first:
            stream.add(part)
        stream.add_trades(news)
        if not ticks_first:
            stream.add(part)
        assert stream.newest_ns is not None
        reader.take(stream.close(stream.newest_ns - LATENESS_NS, stream.newest_ns))
    # What was left, and all of it once more: said twice, it counts once.
    stream.add_trades(trades)
    assert stream.newest_ns is not None
    reader.take(stream.close(stream.newest_ns + NS, stream.newest_ns))
    assert stream.end_ns is not None
    cleaned = clean_ticks(ticks, LATENESS_NS).ticks
    bars = build_bars(cleaned, start_ns=START_NS, end_ns=stream.end_ns, spec=SPEC, trades=trades)
    grid = compute_own_features(bars, SPEC)
    assume(np.isfinite(grid["ln_trade_rate_15"]).any())
    assert reader.assert_equals(grid) > 0


def test_a_trade_of_a_final_second_is_counted_and_its_row_stays() -> None:
    stream = stream_of()
    stream.add(quotes([k + 0.5 for k in range(200)]))
    closed(stream, 200)
    trade = replace(random_trades(1, seconds=1, per_second=5).take(slice(0, 1)), products=("BTC-USD", "X"))
    trade = replace(trade, product=np.zeros(1, np.int32), trade_time_ns=np.array([START_NS + 5 * NS]))
    final_ns = stream.final_ns
    assert final_ns > START_NS + 6 * NS
    stream.add_trades(trade)
    # That the feed tells of trades is news for the seconds that may still change.
    assert closed(stream, 200).bar_start_ns.min() >= final_ns
    assert stream.beyond_reach == 1
    stream.add_trades(trade)
    assert stream.beyond_reach == 1


def quotes(
    seconds: list[float], *, connection: int = 0, first_sequence: int = 0, **columns: Any
) -> TickColumns:
    """One product's ticks at these seconds, the mid moving a little each time."""
    return ticks_of(
        [
            {
                "event_time_ns": START_NS + round(at * NS),
                "sequence_num": first_sequence + number,
                "connection": connection,
                "bid": 100.0 + 0.01 * ((first_sequence + number) % 7),
                **columns,
            }
            for number, at in enumerate(seconds)
        ],
        products=("BTC-USD",),
    )


def ends_and_revisions(rows: LiveRows) -> list[tuple[int, int]]:
    """(second of the bar's end, revision) of each row."""
    return list(zip(((rows.bar_end_ns - START_NS) // NS).tolist(), rows.revision.tolist(), strict=True))


def closed(stream: LiveFeatures, second: float, heard: float | None = None) -> LiveRows:
    heard_ns = START_NS + round((second if heard is None else heard) * NS)
    return stream.close(START_NS + round(second * NS), heard_ns)


def test_a_second_is_published_once_and_again_only_when_a_delayed_tick_changes_it() -> None:
    stream = stream_of()
    stream.add(quotes([0.5, 1.5, 2.5, 3.5]))
    assert ends_and_revisions(closed(stream, 3.0)) == [(1, 0), (2, 0), (3, 0)]
    assert ends_and_revisions(closed(stream, 3.9)) == []
    stream.add(quotes([2.7], first_sequence=10))
    # The delayed tick is the third bar's new quote, so the windows of that bar and later ones change.
    assert ends_and_revisions(closed(stream, 4.0)) == [(3, 1), (4, 0)]
    assert stream.beyond_reach == 0


def test_a_gap_learnt_of_late_changes_the_rows_it_breaks() -> None:
    stream = stream_of()
    stream.add(quotes([k + 0.5 for k in range(20)]))
    stream.add(quotes([k + 0.5 for k in range(20, 30)], first_sequence=21))
    first = closed(stream, 30)
    assert ends_and_revisions(first) == [(second, 0) for second in range(1, 31)]
    assert not first.provisional.any()
    stream.learn_gaps({"c0": np.array([20], dtype=np.int64)})
    again = closed(stream, 30)
    assert (21, 1) in ends_and_revisions(again)
    broken = again.reason[again.bar_end_ns == START_NS + 21 * NS]
    assert broken.tolist() == [Reason.BREAK]
    # The same gap reported again is no news.
    stream.learn_gaps({"c0": np.array([20], dtype=np.int64)})
    assert len(closed(stream, 30)) == 0


def test_a_silent_feed_closes_seconds_provisionally_and_revises_them_when_it_was_wrong() -> None:
    stream = stream_of()
    stream.add(quotes([0.5, 1.5, 2.5]))
    rows = closed(stream, 14, heard=2.5)
    assert ends_and_revisions(rows) == [(second, 0) for second in range(1, 15)]
    assert rows.provisional.tolist() == [False, False] + 12 * [True]
    assert rows.reason[-1] == Reason.IN_GAP
    stream.add(quotes([4.5, 14.5], first_sequence=3))
    again = closed(stream, 15)
    # Stale from 7.5 s on either way; in a gap from 10.5 s on, now from 12.5 s on.
    assert ends_and_revisions(again) == [(5, 1), (6, 1), (7, 1), (11, 1), (12, 1), (15, 0)]
    assert again.provisional.tolist() == [row == Reason.IN_GAP for row in again.reason.tolist()]


def test_bars_of_the_window_are_bit_for_bit_those_of_one_computation() -> None:
    ticks = random_ticks(5, seconds=200, per_second=2)
    stream = stream_of()
    for first in range(0, len(ticks), 11):
        stream.add(ticks.take(slice(first, first + 11)))
        assert stream.newest_ns is not None
        stream.close(stream.newest_ns - LATENESS_NS, stream.newest_ns)
    assert stream.bars is not None
    assert not stream.beyond_reach
    bars, _ = at_once(ticks, START_NS, stream.bars.end_ns)
    bars = bars.slice(stream.bars.start_ns, stream.bars.end_ns)
    for name in BAR_COLUMNS:
        np.testing.assert_array_equal(getattr(stream.bars, name), getattr(bars, name), err_msg=name)
    assert stream.bars.n_bars < 200


def test_a_recording_that_begins_again_is_published_again_with_higher_revisions() -> None:
    stream, reader = stream_of(), Reader()
    stream.add(quotes([k + 0.5 for k in range(100)]))
    reader.take(closed(stream, 98))
    assert stream.add(quotes([k + 0.5 for k in range(50)], connection=1))
    rows = closed(stream, 48)
    # First what the old recording still owed, then the new one.
    assert ends_and_revisions(rows)[:2] == [(99, 0), (100, 0)]
    assert ends_and_revisions(rows)[2:] == [(second, 1) for second in range(1, 49)]
    assert stream.restarts == 1


def test_a_late_tick_of_the_same_connection_is_no_new_beginning() -> None:
    stream = stream_of()
    stream.add(quotes([k + 0.5 for k in range(100)]))
    closed(stream, 98)
    assert not stream.add(quotes([1.5], first_sequence=200))
    assert (len(closed(stream, 98)), stream.beyond_reach) == (0, 1)
    assert stream.counts.late == 1


def test_a_jump_of_months_leaves_no_rows_between() -> None:
    stream = stream_of()
    stream.add(quotes([0.5, 1.5]))
    months_s = 100 * 86_400
    assert months_s * NS > LONGEST_HOLE_NS
    assert stream.add(quotes([months_s + 0.5, months_s + 1.5], first_sequence=2))
    rows = closed(stream, months_s + 2)
    assert ends_and_revisions(rows) == [(1, 0), (2, 0), (months_s + 1, 1), (months_s + 2, 1)]


@pytest.mark.parametrize("stopped_at", [40, 60, 85])
def test_after_a_restart_nothing_is_published_twice_and_what_changed_is_revised(stopped_at: int) -> None:
    ticks = random_ticks(11, seconds=120, per_second=2, faults=False)
    first, reader = stream_of(), Reader()
    first.add(ticks.take(ticks.event_time_ns < START_NS + stopped_at * NS))
    reader.take(closed(first, stopped_at))
    # Two rows never made it out, one was computed from ticks that lacked a delayed one.
    tail = [
        PublishedRow(product, start_ns + SPEC.bar_ns, *row[:3], row[3])
        for (product, start_ns), row in reader.rows.items()
        if start_ns >= START_NS + (stopped_at - 30) * NS
    ]
    for row in tail[-2:]:
        del reader.rows[row.product_id, row.bar_end_ns - SPEC.bar_ns]
    wrong = tail[10]
    tail[10] = replace(wrong, values=wrong.values + 1.0)

    second = stream_of(silent_until_ns=START_NS + (stopped_at - 20) * NS, published=tail[:-2])
    second.add(ticks)
    again = closed(second, 120)
    for k in np.flatnonzero(again.revision > 0).tolist():
        assert (again.products[again.product[k]], int(again.bar_end_ns[k])) == (
            wrong.product_id,
            wrong.bar_end_ns,
        )
    assert int(again.known.sum()) > 0
    assert again.bar_end_ns.min() > second.silent_until_ns
    reader.take(again)
    _, grid = at_once(ticks, START_NS, START_NS + 120 * NS)
    assert reader.assert_equals(grid) > 200


def test_rows_as_a_frame_are_those_of_the_grid_with_revision_and_provisional() -> None:
    stream = stream_of()
    stream.add(quotes([k + 0.5 for k in range(80)]))
    frame = closed(stream, 80).to_frame()
    _, grid = at_once(quotes([k + 0.5 for k in range(80)]), START_NS, START_NS + 80 * NS)
    whole = grid.to_frame()
    assert list(frame.columns) == [*whole.columns, "revision", "provisional"]
    assert list(frame.columns[2:-4]) == list(own_feature_names(SPEC))
    for name in whole.columns:
        np.testing.assert_array_equal(frame[name].to_numpy(), whole[name].to_numpy(), err_msg=name)
