"""An hour is closed again when rows came late: recorded beside what it was, never instead of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cryptovol_dagster_tests.ingestor.archive.test_seal import audited, closed, rewrite, with_value
from cryptovol_dagster_tests.ingestor.audit.story import Story
from cryptovol_dagster_tests.ingestor.feed.support import T0_NS
from ingestor.archive.closing import HourCloser
from ingestor.archive.layout import closing_path, closing_paths
from ingestor.archive.reader import RawReader
from ingestor.audit.hours import audit
from ingestor.envelope import TICKS
from ingestor.times import HOUR_NS, NS, hour_key

HOUR = hour_key(T0_NS)


def closer_of(story: Story, revised_after_s: float = 0.0) -> HourCloser:
    """A closer that has just taken over, as after a start."""
    closer = HourCloser(story.raw_dir, 120.0, lambda topic, partition: 10**9, revised_after_s)
    closer.recover(story.logs)
    return closer


def land(story: Story, connection: str = "late", *, at_ns: int = T0_NS + 5 * NS) -> None:
    story.at_ns = at_ns
    story.connect(connection).frames("ticker", "both").end()
    story.store()


def files_of_the_hour(story: Story) -> list[Path]:
    return [path for path in story.files(TICKS) if f"hour={HOUR[-5:-3]}" in str(path)]


def revisions(closer: HourCloser, looks: int = 4, *, at_the_end: bool = False) -> list[tuple[str, int, int]]:
    """What some looks at the hours record again."""
    found = [hour for _ in range(looks) for hour in closer.advance(at_the_end=at_the_end)]
    return [(hour.hour, hour.revision, hour.late_rows) for hour in found if hour.revision]


def test_late_rows_close_the_hour_again_and_what_it_was_first_stays_readable(tmp_path: Path) -> None:
    story = closed(tmp_path)
    before = closing_path(tmp_path, T0_NS).read_bytes()
    (first,) = RawReader(tmp_path).closed_hours()
    land(story)
    assert revisions(closer_of(story)) == [(HOUR, 1, 6)]
    (hour,) = RawReader(tmp_path).closed_hours()
    assert hour.version != first.version
    assert hour.rows[TICKS] == first.rows[TICKS] + 3 == hour.seals[TICKS].rows
    assert (hour.closed_at_ns, hour.watermark_ns) == (first.closed_at_ns, first.watermark_ns)
    assert first.recorded_at_ns == first.closed_at_ns < hour.recorded_at_ns == hour.revised_at_ns
    assert RawReader(tmp_path).closings(HOUR) == [first, hour]
    assert closing_path(tmp_path, T0_NS).read_bytes() == before
    result = audited(story)
    assert result.findings == ()
    (state,) = result.seals
    assert (state.state, state.late_rows, state.revision) == ("unchanged", 6, 1)


def test_what_comes_later_still_is_another_revision(tmp_path: Path) -> None:
    story = closed(tmp_path)
    closer = closer_of(story)
    for revision in (1, 2):
        land(story, f"late {revision}")
        closer.landed([T0_NS, T0_NS + HOUR_NS])
        assert revisions(closer) == [(HOUR, revision, 6 * revision)]
    assert [hour.revision for hour in RawReader(tmp_path).closings(HOUR)] == [0, 1, 2]
    assert revisions(closer_of(story)) == []


def test_an_hour_without_late_rows_is_not_closed_again(tmp_path: Path) -> None:
    story = closed(tmp_path)
    closer = closer_of(story)
    closer.landed([T0_NS, T0_NS - HOUR_NS])
    assert revisions(closer) == []
    assert [len(paths) for _, paths in closing_paths(tmp_path)] == [1]


def test_an_hour_waits_until_nothing_more_lands_or_until_the_end(tmp_path: Path) -> None:
    story = closed(tmp_path)
    closer = closer_of(story, revised_after_s=1_000.0)
    land(story)
    closer.landed([T0_NS])
    assert revisions(closer) == []
    assert revisions(closer, 1, at_the_end=True) == [(HOUR, 1, 6)]


def test_a_killed_archive_left_late_rows_which_the_next_start_finds(tmp_path: Path) -> None:
    story = closed(tmp_path)
    land(story)  # and killed before it was noticed
    assert revisions(closer_of(story)) == [(HOUR, 1, 6)]


def test_rows_within_a_file_of_the_next_hour_are_found_too(tmp_path: Path) -> None:
    """A file holds what lies within 10 s of its hour."""
    story = closed(tmp_path)
    before = files_of_the_hour(story)
    story.at_ns = T0_NS + HOUR_NS + NS
    next_hour = story.connect("next").frames("ticker")
    story.at_ns = T0_NS + HOUR_NS - 2 * NS
    story.connect("late").frames("ticker")
    next_hour.end()
    story.store(without=("feed.events", "feed.dead"))
    assert files_of_the_hour(story) == before
    assert revisions(closer_of(story)) == [(HOUR, 1, 1)]


def test_two_archives_record_a_revision_once(tmp_path: Path) -> None:
    story = closed(tmp_path)
    one, other = closer_of(story), closer_of(story)
    land(story)
    one.landed([T0_NS])
    other.landed([T0_NS])
    assert revisions(one, 1) == [(HOUR, 1, 6)]
    assert revisions(other, 1) == []
    assert [hour.revision for hour in RawReader(tmp_path).closings(HOUR)] == [0, 1]


def test_a_revision_does_not_seal_what_was_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    story = closed(tmp_path)
    land(story)
    rewrite(story.files(TICKS)[0], with_value("best_bid", 1, 1.0))
    assert revisions(closer_of(story)) == []
    assert f"hour {HOUR} cannot be closed again with its late rows: {TICKS} partition 0" in caplog.text
    assert [finding.kind for finding in audited(story).findings] == ["seal"]


def test_a_revision_made_over_a_change_excuses_nothing(tmp_path: Path) -> None:
    """Whoever records a fitting revision by hand does not hide that the first record no longer holds."""
    story = closed(tmp_path)
    rewrite(story.files(TICKS)[0], with_value("best_bid", 1, 1.0))
    (first,) = RawReader(tmp_path).closed_hours()
    first_path, kept = closing_path(tmp_path, T0_NS), msgspec.json.encode(first)
    first_path.unlink()
    (forged,) = HourCloser.advance(closer_of(story))
    first_path.write_bytes(kept)
    closing_path(tmp_path, T0_NS, 1).write_bytes(
        msgspec.json.encode(msgspec.structs.replace(forged, revision=1))
    )
    (finding,) = audit(RawReader(tmp_path)).findings
    assert "expected the 4 rows of the close (sha256 " in finding.text


def test_an_hour_that_was_not_sealed_is_closed_again_by_its_number_of_rows(tmp_path: Path) -> None:
    story = closed(tmp_path)
    path = closing_path(tmp_path, T0_NS)
    before = msgspec.json.decode(path.read_bytes())
    del before["seals"]
    path.write_bytes(msgspec.json.encode(before))
    assert revisions(closer_of(story)) == []
    land(story)
    assert revisions(closer_of(story)) == [(HOUR, 1, 6)]


def test_a_record_that_cannot_be_read_does_not_stop_the_archive(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    story = closed(tmp_path)
    path = closing_path(tmp_path, T0_NS)
    path.write_bytes(b"{")
    closer = closer_of(story)
    closer.landed([T0_NS])
    assert revisions(closer) == []
    assert f"closed hours are not checked for late rows: {path} cannot be read" in caplog.text
    assert f"hour {HOUR} cannot be closed again with its late rows: {path} cannot be read" in caplog.text
