"""The sequence check against an obvious reference: a set of the numbers seen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingestor.exchange.sequence import Gap, SequenceTracker, Verdict


def reference(numbers: list[int]) -> list[object]:
    """Judge each number by looking at everything before it."""
    verdicts: list[object] = []
    for place, number in enumerate(numbers):
        before = numbers[:place]
        newest = max(before, default=-1)
        skipped = [n for n in range(newest + 1, number) if n not in before]
        if number <= newest:
            verdicts.append(Verdict.REPEAT)
        elif skipped:
            verdicts.append(Gap(skipped[0], skipped[-1]))
        else:
            verdicts.append(Verdict.OK)
    return verdicts


@given(st.lists(st.integers(0, 60), max_size=60))
def test_agrees_with_the_reference(numbers: list[int]) -> None:
    tracker = SequenceTracker()
    assert [tracker.observe(number) for number in numbers] == reference(numbers)
    assert tracker.newest == max(numbers, default=-1)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=60))
def test_seen_and_missing_numbers_make_up_the_whole(numbers: list[int]) -> None:
    tracker = SequenceTracker()
    missing, accepted = 0, 0
    for number in numbers:
        verdict = tracker.observe(number)
        if isinstance(verdict, Gap):
            missing += verdict.count
        accepted += verdict is not Verdict.REPEAT
    assert missing + accepted == tracker.newest + 1


def test_numbers_start_at_zero() -> None:
    assert SequenceTracker().observe(3) == Gap(0, 2)
    assert SequenceTracker().observe(0) is Verdict.OK
