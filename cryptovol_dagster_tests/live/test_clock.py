"""When seconds close: at the feed's pace while it comes, by the wall clock while it is silent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.live.clock import FeedClock, PartitionClock

LATENESS_NS = 2 * NS


def test_a_silent_feed_is_carried_on_for_a_while_and_then_stands_still() -> None:
    feed = FeedClock(carry_ns=40 * NS)
    assert feed.reading(5 * NS) is None
    feed.hear(1_000 * NS, 5 * NS)
    feed.hear(990 * NS, 6 * NS)
    assert feed.reading(6 * NS) == 1_001 * NS
    assert feed.reading(45 * NS) == feed.reading(500 * NS) == 1_040 * NS
    feed.restart(10 * NS, 500 * NS)
    assert feed.reading(501 * NS) == 11 * NS


def test_the_message_with_the_least_delay_sets_the_time() -> None:
    feed, ms = FeedClock(carry_ns=40 * NS), NS // 1_000
    delays_ms = [80, 5, 140, 60, 90]
    for second, delay_ms in enumerate(delays_ms):
        feed.hear((1_000 + second) * NS, second * NS + delay_ms * ms)
    assert feed.reading(5 * NS) == 1_005 * NS - 5 * ms
    # The clock of the feed may be slower than ours: the least delay of long ago counts no more.
    for second in range(5, 40):
        feed.hear((1_000 + second) * NS, second * NS + 50 * ms)
    assert feed.reading(40 * NS) == 1_040 * NS - 50 * ms


def test_after_a_silence_the_next_message_alone_sets_the_time() -> None:
    feed = FeedClock(carry_ns=40 * NS)
    feed.hear(1_000 * NS, 0)
    assert feed.reading(20 * NS) == 1_020 * NS
    feed.hear(1_001 * NS, 20 * NS)
    assert feed.reading(20 * NS) == 1_001 * NS


def test_the_time_of_raw_storage_does_not_advance_and_does_not_outlast_the_first_message() -> None:
    feed = FeedClock(carry_ns=40 * NS)
    feed.hear(500 * NS, -86_000 * NS)
    assert feed.reading(0) == feed.reading(9 * NS) == 540 * NS
    feed.hear(700 * NS, 10 * NS)
    feed.hear(600 * NS, -86_000 * NS)
    assert feed.reading(11 * NS) == 701 * NS


def test_seconds_close_when_they_may_however_rarely_it_is_asked() -> None:
    often, rarely = PartitionClock(LATENESS_NS), PartitionClock(LATENESS_NS)
    often.at_end = rarely.at_end = True
    for step in range(1, 10_000):
        now_ns = step * NS // 1_000
        closing = often.closing(now_ns, 50 * NS, 60 * NS + now_ns)
        if step % 97 == 0 and step > 2_100:
            assert rarely.closing(now_ns, 50 * NS, 60 * NS + now_ns) == closing == 58 * NS + now_ns
        elif step % 97 == 0:
            rarely.closing(now_ns, 50 * NS, 60 * NS + now_ns)


def test_a_market_played_at_any_speed_waits_for_the_wall_clock_too() -> None:
    clock = PartitionClock(LATENESS_NS)
    assert clock.closing(0, None, 100 * NS) is None
    # An hour of market in a tenth of a second: nothing closes before two seconds of our own time.
    assert clock.closing(NS, 1_000 * NS, None) is None
    assert clock.closing(NS + NS // 10, 4_600 * NS, None) is None
    assert clock.closing(3 * NS, 4_700 * NS, None) == 1_000 * NS
    assert clock.closing(3 * NS + NS // 10, 4_700 * NS, None) == 4_600 * NS
    assert clock.closing(6 * NS, 4_700 * NS, None) == 4_698 * NS


def test_what_waits_to_be_read_holds_a_partition_open_whatever_the_others_say() -> None:
    clock = PartitionClock(LATENESS_NS)
    for second in range(10):
        closing = clock.closing(second * NS, 50 * NS, (50 + second) * NS)
    assert closing == 48 * NS
    clock.at_end = True
    for second in range(10, 20):
        closing = clock.closing(second * NS, 50 * NS, (50 + second) * NS)
    assert closing == 67 * NS


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3 * NS), st.integers(0, 100 * NS), st.booleans()), min_size=1, max_size=40
    )
)
def test_closing_never_passes_what_was_known_when_it_had_to_be_known(
    steps: list[tuple[int, int, bool]],
) -> None:
    clock, now_ns, own_ns = PartitionClock(LATENESS_NS), 0, 1_000 * NS
    known: list[tuple[int, int, bool]] = []
    for wall_ns, market_ns, at_end in steps:
        now_ns, own_ns, clock.at_end = now_ns + wall_ns, own_ns + market_ns, at_end
        feed_ns = own_ns + market_ns
        reading_ns = max(own_ns, feed_ns) if at_end else own_ns
        known.append((now_ns, reading_ns, at_end))
        closing = clock.closing(now_ns, own_ns, feed_ns)
        old_enough = [each for each in known if each[0] <= now_ns - LATENESS_NS]
        if not old_enough:
            assert closing is None
            continue
        at_ns, settled_ns, went_on = old_enough[-1]
        if went_on and (later := known[len(old_enough) :]):
            # Between two readings the time goes on, up to the second of them.
            settled_ns = max(settled_ns, min(later[0][1], settled_ns + now_ns - LATENESS_NS - at_ns))
        assert closing == min(reading_ns - LATENESS_NS, settled_ns)
