"""An hour of scores closes when every partition is scored beyond its end."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from cryptovol_dagster_tests.ingestor.archive.messages import MINUTE_NS, TEN_NS, closing, event, score, tick
from ingestor.archive import scored_until
from ingestor.archive.closing import HourCloser
from ingestor.archive.collection import FEED, SCORES
from ingestor.archive.layout import CLOSED_SCORES, closing_path
from ingestor.archive.reader import RawReader
from ingestor.archive.schema import to_batch
from ingestor.archive.writer import OpenFile
from ingestor.audit.findings import SealState
from ingestor.audit.hours import audit
from ingestor.envelope import EVENTS, SCORES_TOPIC, TICKS
from ingestor.times import HOUR_NS, NS

LOG_ID = "abcd1234"
HOUR = "2026-04-04-10:00"
#: Closed until here, an hour is over by the 120 s of the closer.
ENOUGH_NS = TEN_NS + HOUR_NS + 120 * NS


class Story:
    """Stored scores of two partitions, and a closer over them."""

    def __init__(self, raw_dir: Path, *, partitions: int = 2) -> None:
        self.raw_dir = raw_dir
        self.partitions = partitions
        self.log_id = LOG_ID
        self._stored: dict[tuple[str, int], int] = defaultdict(int)
        self.closer = self.new_closer()

    def new_closer(self) -> HourCloser:
        closer = HourCloser(self.raw_dir, 120.0, lambda topic, partition: 0, 0.0, SCORES)
        closer.recover({SCORES_TOPIC: self.log_id}, self.partitions)
        return closer

    def store(self, partition: int, *values: bytes, by_other: bool = False) -> None:
        """Store records in one file of the partition, by this archive or another one."""
        first = self._stored[self.log_id, partition]
        batch = to_batch(SCORES_TOPIC, partition, first, values, lambda _: TEN_NS, None)
        while batch.num_rows:
            file = OpenFile(self.raw_dir, SCORES_TOPIC, self.log_id, partition, first)
            fitting = file.fitting(batch)
            file.append(batch.slice(0, fitting), 0)
            path = file.publish()
            if not by_other:
                self.closer.landed(file.hours_ns)
                self.closer.observe_file(path)
            batch, first = batch.slice(fitting), file.next_offset
        self._stored[self.log_id, partition] = first

    def closed(self, closer: HourCloser | None = None) -> list[tuple[str, int, int]]:
        """Hours that close now, or close again: key, revision, late rows."""
        hours = (closer or self.closer).advance(at_the_end=True)
        return [(hour.hour, hour.revision, hour.late_rows) for hour in hours]

    def recorded(self) -> list[str]:
        return [hour.hour for hour in RawReader(self.raw_dir).closed_hours(closed=CLOSED_SCORES)]


@pytest.fixture
def story(tmp_path: Path) -> Story:
    story = Story(tmp_path)
    story.store(0, score(TEN_NS + NS), closing(0, TEN_NS + NS))
    return story


def test_the_slowest_partition_decides(story: Story) -> None:
    story.store(0, closing(0, ENOUGH_NS))
    assert (story.closer.watermark_ns, story.closed()) == (None, [])  # nothing is known of partition 1
    story.store(1, closing(1, ENOUGH_NS - 1))
    assert (story.closer.watermark_ns, story.closed()) == (ENOUGH_NS - 1, [])
    story.store(1, closing(1, ENOUGH_NS))
    assert story.closed() == [(HOUR, 0, 0)]
    assert story.closed() == []
    (hour,) = RawReader(story.raw_dir).closed_hours(closed=CLOSED_SCORES)
    assert (hour.rows, hour.watermark_ns) == ({SCORES_TOPIC: 2}, ENOUGH_NS)
    assert hour.seals[SCORES_TOPIC].parts[0].last_offset == 1
    assert RawReader(story.raw_dir).closed_hours() == []


def test_closing_records_of_another_chain_and_unreadable_ones_decide_nothing(story: Story) -> None:
    story.store(1, closing(1, TEN_NS))
    story.store(0, closing(0, ENOUGH_NS, chain="minutes"), b"?")
    story.store(1, closing(1, ENOUGH_NS))
    assert (story.closer.watermark_ns, story.closed()) == (TEN_NS + NS, [])


def test_the_newest_record_of_a_partition_counts_though_its_time_went_back(story: Story) -> None:
    story.store(1, closing(1, ENOUGH_NS))
    story.store(0, closing(0, ENOUGH_NS), closing(0, TEN_NS + MINUTE_NS))
    assert (story.closer.watermark_ns, story.closed()) == (TEN_NS + MINUTE_NS, [])


def test_where_a_partition_has_records_of_several_the_least_counts(tmp_path: Path) -> None:
    """The topics have different numbers of partitions: each gets all the records."""
    story = Story(tmp_path, partitions=1)
    story.store(0, score(TEN_NS), closing(0, ENOUGH_NS), closing(1, TEN_NS), closing(2, ENOUGH_NS))
    assert story.closed() == []
    story.store(0, closing(1, ENOUGH_NS))
    assert story.closed() == [(HOUR, 0, 0)]


def test_a_start_knows_what_was_closed_until_when(story: Story) -> None:
    story.store(0, closing(0, ENOUGH_NS), score(ENOUGH_NS))
    story.store(1, closing(1, ENOUGH_NS), by_other=True)
    assert story.closed(story.new_closer()) == [(HOUR, 0, 0)]


def test_partitions_of_another_archive_are_read_from_its_files(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scored_until, "_OTHERS_S", 0.0)
    story.store(0, closing(0, ENOUGH_NS))
    story.store(1, closing(1, TEN_NS), by_other=True)
    assert story.closer.advance() == []
    story.store(1, closing(1, ENOUGH_NS), by_other=True)
    assert [hour.hour for hour in story.closer.advance()] == [HOUR]
    assert (story.closer.may_close({0, 2}, 3), story.closer.may_close({1, 2}, 3)) == (True, False)


def test_a_recreated_topic_begins_again_and_closes_what_was_left_open(story: Story) -> None:
    story.store(0, closing(0, ENOUGH_NS))
    story.store(1, closing(1, TEN_NS))
    story.log_id = "0000aaaa"
    story.closer.recover({SCORES_TOPIC: story.log_id}, story.partitions)
    assert (story.closer.watermark_ns, story.closed()) == (None, [])
    for partition in range(2):
        story.store(partition, closing(partition, ENOUGH_NS))
    assert story.closed() == [(HOUR, 0, 0)]


def test_a_late_revision_of_a_score_closes_the_hour_again(story: Story) -> None:
    for partition in range(2):
        story.store(partition, closing(partition, ENOUGH_NS))
    assert story.closed() == [(HOUR, 0, 0)]
    story.store(0, score(TEN_NS + NS, 1), closing(0, ENOUGH_NS + NS))
    assert story.closed() == [(HOUR, 1, 1)]
    first, second = RawReader(story.raw_dir).closings(HOUR, closed=CLOSED_SCORES)
    assert (first.rows[SCORES_TOPIC], second.rows[SCORES_TOPIC]) == (2, 3)
    assert first.version != second.version


def test_hours_of_the_feed_and_of_the_scores_close_independently(story: Story) -> None:
    feed = HourCloser(story.raw_dir, 120.0, lambda topic, partition: 1)
    logs = {TICKS: LOG_ID, EVENTS: LOG_ID, SCORES_TOPIC: LOG_ID}
    for topic, value in ((TICKS, tick(TEN_NS)), (EVENTS, event("checkpoint", 1, "c1", ENOUGH_NS))):
        file = OpenFile(story.raw_dir, topic, LOG_ID, 0, 0)
        file.append(to_batch(topic, 0, 0, [value], lambda _: TEN_NS, None), 0)
        file.publish()
    feed.recover(logs)
    assert [hour.hour for hour in feed.advance()] == [HOUR]  # the scores are far behind
    before = closing_path(story.raw_dir, TEN_NS).read_bytes()
    for partition in range(2):
        story.store(partition, closing(partition, ENOUGH_NS))
    assert story.closed() == [(HOUR, 0, 0)]
    story.store(0, score(TEN_NS, 1))
    assert story.closed() == [(HOUR, 1, 1)]
    feed.recover(logs)
    assert feed.advance(at_the_end=True) == []
    assert closing_path(story.raw_dir, TEN_NS).read_bytes() == before
    assert set(RawReader(story.raw_dir).closed_hours()[0].rows) == set(FEED.topics)


def closed_and_audited(story: Story) -> Story:
    for partition in range(2):
        story.store(partition, closing(partition, ENOUGH_NS), score(ENOUGH_NS + NS))
    assert story.closed() == [(HOUR, 0, 0)]
    return story


def test_an_audit_covers_offsets_and_seals_of_scores(story: Story) -> None:
    closed_and_audited(story)
    result = audit(RawReader(story.raw_dir), with_scores=True)
    assert result.seals == (SealState(HOUR, "unchanged", collection="scores"),)
    assert [(one.topic, one.partition, one.missing) for one in result.offsets] == [
        (SCORES_TOPIC, 0, 0),
        (SCORES_TOPIC, 1, 0),
    ]
    assert result.findings == ()
    assert audit(RawReader(story.raw_dir)) == replace(result, seals=(), offsets=())


def test_an_audit_finds_a_lost_file_of_scores_by_its_offsets_and_its_seal(story: Story) -> None:
    story.store(0, score(TEN_NS + 2 * NS))
    closed_and_audited(story)
    lost = sorted((story.raw_dir / SCORES_TOPIC).glob("*/hour=10/*-p0-*"))[-1]
    lost.unlink()
    result = audit(RawReader(story.raw_dir), with_scores=True)
    assert [(one.kind, one.count) for one in result.findings] == [("seal", 1), ("offsets", 1)]
    assert f"{SCORES_TOPIC} partition 0 of log {LOG_ID}: expected the 3 rows" in result.findings[0].text
    assert "1 offsets are missing after" in result.findings[1].text


@pytest.mark.parametrize(("flag", "state"), [(True, "unchanged"), (False, "changed"), (None, "changed")])
def test_an_audit_finds_a_changed_truth_value(story: Story, flag: bool | None, state: str) -> None:
    closed_and_audited(story)
    (path,) = (story.raw_dir / SCORES_TOPIC).glob("*/hour=10/*-p0-*")
    path.unlink()
    file = OpenFile(story.raw_dir, SCORES_TOPIC, LOG_ID, 0, 0)
    values = [_with_flag(score(TEN_NS + NS), flag), closing(0, TEN_NS + NS)]
    file.append(to_batch(SCORES_TOPIC, 0, 0, values, lambda _: TEN_NS, None), 0)
    file.publish()
    assert [one.state for one in audit(RawReader(story.raw_dir), with_scores=True).seals] == [state]


def _with_flag(value: bytes, flag: bool | None) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(value) | {"flag": flag})
