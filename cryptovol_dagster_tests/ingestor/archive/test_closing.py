"""An hour closes once, when nothing of it can come any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptovol_dagster_tests.ingestor.archive.messages import MINUTE_NS, TEN_NS, event, tick
from ingestor.archive.checkpoints import LOST_AFTER_NS
from ingestor.archive.closing import MAX_EMPTY_NS, HourCloser
from ingestor.archive.reader import RawReader
from ingestor.archive.schema import to_batch
from ingestor.archive.writer import OpenFile
from ingestor.envelope import EVENTS, TICKS
from ingestor.times import HOUR_NS, NS

ENOUGH_NS = HOUR_NS + 120 * NS
NOW_NS = TEN_NS + 1000 * HOUR_NS


class Story:
    """Raw storage and a closer over it, told event by event."""

    def __init__(self, raw_dir: Path) -> None:
        self.raw_dir = raw_dir
        self.stored = {(TICKS, 0): 0}
        self.events = 0
        self.at_ns = NOW_NS
        self.closer = self.new_closer()

    def new_closer(self) -> HourCloser:
        return HourCloser(
            self.raw_dir, 120.0, lambda topic, partition: self.stored.get((topic, partition), 0)
        )

    def ticks(self, *times: int) -> None:
        first = self.stored[TICKS, 0]
        file = OpenFile(self.raw_dir, TICKS, "abcd1234", 0, first)
        file.append(to_batch(TICKS, 0, first, [tick(time) for time in times], lambda _: 0, None), 0)
        file.publish()
        self.stored[TICKS, 0] = file.next_offset

    def tell(
        self,
        kind: str,
        connection: str = "c1",
        time_ns: int | None = None,
        offset: int = -1,
        logs: dict[str, str] | None = None,
    ) -> list[str]:
        """Store one event and return the hours that closed."""
        self.store(kind, connection, time_ns, offset, logs)
        return self.advance()

    def store(
        self,
        kind: str,
        connection: str = "c1",
        time_ns: int | None = None,
        offset: int = -1,
        logs: dict[str, str] | None = None,
    ) -> None:
        """Store one event without looking at the hours yet."""
        self.at_ns += NS
        offsets = {TICKS: {"0": offset}} if offset >= 0 else None
        value = event(kind, self.at_ns, connection, time_ns, offsets, logs)
        file = OpenFile(self.raw_dir, EVENTS, "abcd1234", 0, self.events)
        file.append(to_batch(EVENTS, 0, self.events, [value], lambda _: 0, None), 0)
        self.events += 1
        self.closer.observe_file(file.publish())

    def advance(self) -> list[str]:
        return [hour.hour[-5:] for hour in self.closer.advance()]


@pytest.fixture
def story(tmp_path: Path) -> Story:
    story = Story(tmp_path)
    story.ticks(TEN_NS, TEN_NS + MINUTE_NS)
    return story


def test_an_hour_closes_when_the_watermark_passes_its_end_by_the_margin(story: Story) -> None:
    assert story.tell("checkpoint", time_ns=TEN_NS + ENOUGH_NS - 1) == []
    assert story.tell("checkpoint", time_ns=TEN_NS + ENOUGH_NS) == ["10:00"]
    assert story.tell("checkpoint", time_ns=TEN_NS + ENOUGH_NS + NS) == []
    (hour,) = RawReader(story.raw_dir).closed_hours()
    assert (hour.hour, hour.watermark_ns) == ("2026-04-04-10:00", TEN_NS + ENOUGH_NS)
    assert hour.rows == {"ticks.raw": 2, "trades.raw": 0, "feed.events": 0, "feed.dead": 0}
    assert RawReader(story.raw_dir).closed_hours(after="2026-04-04-10:00") == []


def test_connections_that_are_over_do_not_hold_back_what_a_later_one_completed(story: Story) -> None:
    """A fast feed may store several whole connections between two looks."""
    story.store("checkpoint", "first", TEN_NS + MINUTE_NS)
    story.store("disconnected", "first")
    story.store("checkpoint", "second", TEN_NS + ENOUGH_NS)
    story.store("disconnected", "second")
    assert story.advance() == ["10:00"]


def test_a_checkpoint_counts_only_once_its_offsets_are_stored(story: Story) -> None:
    assert story.tell("checkpoint", time_ns=TEN_NS + ENOUGH_NS, offset=2) == []
    story.ticks(TEN_NS + 2 * MINUTE_NS)
    assert story.advance() == ["10:00"]


def test_a_checkpoint_does_not_wait_for_a_log_that_is_gone(story: Story) -> None:
    """What that log had acknowledged and nobody stored is recorded as lost, once."""
    story.closer.recover({EVENTS: "abcd1234", TICKS: "abcd1234"})
    logs = {TICKS: "0000aaaa"}
    assert story.tell("checkpoint", time_ns=TEN_NS + MINUTE_NS, offset=7, logs=logs) == []
    assert story.tell("checkpoint", time_ns=TEN_NS + ENOUGH_NS, offset=9, logs=logs) == ["10:00"]
    gaps = RawReader(story.raw_dir).offset_gaps(TICKS)
    assert [(gap.log_id, gap.first_offset, gap.last_offset) for gap in gaps] == [
        ("0000aaaa", 0, 7),
        ("0000aaaa", 8, 9),
    ]
    assert "the topic was recreated (log abcd1234)" in gaps[0].reason


def test_a_checkpoint_of_the_log_there_is_waits(story: Story) -> None:
    story.closer.recover({EVENTS: "abcd1234", TICKS: "abcd1234"})
    logs = {TICKS: "abcd1234"}
    assert story.tell("checkpoint", time_ns=TEN_NS + ENOUGH_NS, offset=2, logs=logs) == []
    story.ticks(TEN_NS + 2 * MINUTE_NS)
    assert story.advance() == ["10:00"]
    assert RawReader(story.raw_dir).offset_gaps(TICKS) == []


def test_the_slowest_connection_holds_the_hour_open_until_it_disconnects(story: Story) -> None:
    assert story.tell("checkpoint", "slow", TEN_NS + MINUTE_NS) == []
    assert story.tell("checkpoint", "fast", TEN_NS + ENOUGH_NS) == []
    assert story.tell("disconnected", "slow") == ["10:00"]


def test_a_connection_without_a_checkpoint_yet_holds_the_hour_open(story: Story) -> None:
    story.tell("connected", "new")
    assert story.tell("checkpoint", "fast", TEN_NS + ENOUGH_NS) == []
    assert story.tell("checkpoint", "new", TEN_NS + ENOUGH_NS) == ["10:00"]


def test_a_connection_that_fell_silent_holds_nothing(story: Story) -> None:
    story.tell("checkpoint", "killed", TEN_NS + MINUTE_NS)
    story.at_ns += LOST_AFTER_NS
    assert story.tell("checkpoint", "fast", TEN_NS + ENOUGH_NS) == ["10:00"]


def test_the_last_checkpoint_of_a_connection_counts_though_it_ended_before_it_was_stored(
    story: Story,
) -> None:
    story.tell("checkpoint", time_ns=TEN_NS + ENOUGH_NS, offset=2)
    assert story.tell("disconnected") == []
    story.ticks(TEN_NS + 2 * MINUTE_NS)
    assert story.advance() == ["10:00"]
    assert story.closer.watermark_ns is None


def test_empty_hours_between_are_closed_too(story: Story) -> None:
    story.ticks(TEN_NS + 3 * HOUR_NS)
    closed = story.tell("checkpoint", time_ns=TEN_NS + 4 * HOUR_NS + ENOUGH_NS)
    assert closed == ["10:00", "11:00", "12:00", "13:00", "14:00"]
    assert [hour.rows[TICKS] for hour in RawReader(story.raw_dir).closed_hours()] == [2, 0, 0, 1, 0]


def test_two_recordings_weeks_apart_are_not_joined_by_empty_hours(story: Story) -> None:
    later_ns = TEN_NS + MAX_EMPTY_NS + HOUR_NS
    story.ticks(later_ns)
    closed = story.tell("checkpoint", time_ns=later_ns + ENOUGH_NS)
    assert len(closed) == 2


def test_an_older_recording_closes_its_own_hours_later(story: Story) -> None:
    assert story.tell("checkpoint", "live", TEN_NS + ENOUGH_NS) == ["10:00"]
    story.tell("disconnected", "live")
    story.ticks(TEN_NS - 48 * HOUR_NS)
    assert story.tell("checkpoint", "old", TEN_NS - 48 * HOUR_NS + ENOUGH_NS) == ["10:00"]
    assert [hour.hour[:10] for hour in RawReader(story.raw_dir).closed_hours()] == [
        "2026-04-02",
        "2026-04-04",
    ]


def test_a_restart_knows_the_connections_and_closes_nothing_twice(story: Story) -> None:
    assert story.tell("checkpoint", "slow", TEN_NS + ENOUGH_NS) == ["10:00"]
    story.ticks(TEN_NS + HOUR_NS)
    story.tell("checkpoint", "fast", TEN_NS + HOUR_NS + ENOUGH_NS)
    story.closer = story.new_closer()
    story.closer.recover({EVENTS: "abcd1234", TICKS: "abcd1234"})
    assert story.advance() == []
    assert story.closer.watermark_ns == TEN_NS + ENOUGH_NS
    assert story.tell("checkpoint", "slow", TEN_NS + HOUR_NS + ENOUGH_NS) == ["11:00"]


def test_two_closers_of_one_storage_close_an_hour_once(story: Story) -> None:
    other = story.new_closer()
    assert story.tell("checkpoint", time_ns=TEN_NS + ENOUGH_NS) == ["10:00"]
    other.recover({EVENTS: "abcd1234", TICKS: "abcd1234"})
    assert other.advance() == []
