"""A closed hour is sealed: what changes afterwards is found, what comes late is told apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cryptovol_dagster_tests.ingestor.audit.story import Story
from cryptovol_dagster_tests.ingestor.feed.support import T0_NS
from ingestor.archive.closing import HourCloser
from ingestor.archive.layout import CLOSED, FOOTER_KEY, ClosedHour, hour_folder, read_footer
from ingestor.archive.reader import RawReader
from ingestor.archive.seal import seal
from ingestor.audit.findings import Audit
from ingestor.audit.hours import audit
from ingestor.envelope import TICKS, TOPICS, TRADES
from ingestor.times import HOUR_NS, NS

Spoil = Callable[[pa.Table], pa.Table]


def closed(raw_dir: Path, every: int = 10**9) -> Story:
    """An hour of two products with everything a feed brings, and what closed it."""
    story = Story(raw_dir)
    told = (
        story.connect("c1").frames("ticker", "both", "market_trades", "dead", "gap", "ticker", "both").end()
    )
    assert told.next_number == 7
    story.at_ns = T0_NS + HOUR_NS + 130 * NS
    story.connect("c2").frames("ticker").end()
    story.store(every=every)
    closer = HourCloser(raw_dir, 120.0, lambda topic, partition: 10**9)
    closer.recover(story.logs)
    assert len(closer.advance()) == 1
    return story


def audited(story: Story) -> Audit:
    return audit(RawReader(story.raw_dir))


def rewrite(path: Path, spoil: Spoil, **footer: int) -> None:
    """Write a raw file anew with other rows, and a footer that fits."""
    known = msgspec.structs.replace(read_footer(path), **footer)
    table = spoil(pq.ParquetFile(path).read())
    pq.write_table(table.replace_schema_metadata({FOOTER_KEY: msgspec.json.encode(known)}), path)


def with_value(name: str, row: int, value: object) -> Spoil:
    def spoil(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        assert values[row] != value
        values[row] = value
        index = table.schema.get_field_index(name)
        return table.set_column(index, name, pa.array(values, table.schema.field(name).type))

    return spoil


def test_an_hour_is_sealed_with_its_rows_however_they_are_filed(tmp_path: Path) -> None:
    one, other = closed(tmp_path / "one"), closed(tmp_path / "other", every=1)
    (hour,) = RawReader(one.raw_dir).closed_hours()
    (again,) = RawReader(other.raw_dir).closed_hours()
    assert {topic: sealed.rows for topic, sealed in hour.seals.items()} == hour.rows
    assert hour.rows[TICKS] == 6
    assert set(hour.seals) == set(TOPICS)
    # Those two, since events and dead letters tell the time at which they were made.
    for topic in (TICKS, TRADES):
        assert hour.seals[topic] == again.seals[topic]
    assert [(part.partition, part.first_offset, part.last_offset) for part in hour.seals[TICKS].parts] == [
        (0, 0, 3),
        (1, 0, 1),
    ]
    result = audited(one)
    assert result.findings == ()
    assert [(one.hour, one.state, one.late_rows) for one in result.seals] == [(hour.hour, "unchanged", 0)]


def test_files_that_are_put_together_keep_the_seal(tmp_path: Path) -> None:
    story = closed(tmp_path, every=1)
    first, *others = [path for path in story.files(TICKS) if "-p0-" in path.name and "hour=10" in str(path)]
    tables = [pq.ParquetFile(path).read() for path in (first, *others)]
    rewrite(
        first, lambda _: pa.concat_tables(tables), last_offset=3, rows=4, max_time_ns=T0_NS + 6 * NS // 10
    )
    for path in others:
        path.unlink()
    result = audited(story)
    assert [state.state for state in result.seals] == ["unchanged"]
    assert result.findings == ()


@pytest.mark.parametrize(
    "spoil",
    [
        with_value("payload", 1, "{}"),
        with_value("best_bid", 1, 1.0),
        with_value("best_bid", 1, None),
        with_value("product_id", 0, "ETH-USD"),
        with_value("received_at_ns", 0, 7),
        with_value("event_time_ns", 0, T0_NS + 1),
    ],
)
def test_a_value_changed_afterwards_is_found(tmp_path: Path, spoil: Spoil) -> None:
    story = closed(tmp_path)
    rewrite(story.files(TICKS)[0], spoil)
    result = audited(story)
    (finding,) = result.findings
    assert (finding.kind, finding.where) == ("seal", f"{TICKS} partition 0 of log {story.log_id}")
    assert "expected the 4 rows of the close (sha256 " in finding.text
    assert [state.state for state in result.seals] == ["changed"]


def test_rows_lost_afterwards_are_found(tmp_path: Path) -> None:
    story = closed(tmp_path)
    rewrite(story.files(TICKS)[0], lambda table: table.slice(0, 3), rows=3, last_offset=2)
    assert any("found 3: 1 rows are missing" in finding.text for finding in audited(story).findings)


def test_rows_added_among_the_sealed_are_found(tmp_path: Path) -> None:
    story = closed(tmp_path)
    rewrite(story.files(TICKS)[0], lambda table: pa.concat_tables([table.slice(0, 1), table]), rows=5)
    assert any("found 5: 1 rows were added among them" in finding.text for finding in audited(story).findings)


def test_rows_that_come_late_are_told_apart(tmp_path: Path) -> None:
    story = closed(tmp_path)
    story.at_ns = T0_NS + 5 * NS
    story.connect("late").frames("ticker", "both").end()
    story.store()
    result = audited(story)
    assert result.findings == ()
    (state,) = result.seals
    assert state.state == "unchanged"
    # Three ticks, the connection's connected, checkpoint and disconnected.
    assert state.late_rows == 6


def test_an_hour_closed_by_an_earlier_version_is_not_sealed_and_that_is_no_error(tmp_path: Path) -> None:
    story = closed(tmp_path)
    path = hour_folder(tmp_path / CLOSED, T0_NS).with_suffix(".json")
    before = msgspec.json.decode(path.read_bytes())
    del before["seals"]
    path.write_bytes(msgspec.json.encode(before))
    result = audited(story)
    assert result.findings == ()
    assert [state.state for state in result.seals] == ["not sealed"]
    (hour,) = RawReader(tmp_path).closed_hours()
    assert hour.version == ClosedHour(hour=hour.hour, closed_at_ns=0, watermark_ns=0, rows=hour.rows).version


def test_a_seal_names_a_version_of_the_contents(tmp_path: Path) -> None:
    closed(tmp_path)
    (hour,) = RawReader(tmp_path).closed_hours()
    other = msgspec.structs.replace(hour.seals[TICKS], sha256="0")
    changed = msgspec.structs.replace(hour, seals={**hour.seals, TICKS: other})
    assert hour.version != changed.version
    assert len(hour.version) == 12


def test_a_file_that_cannot_be_read_does_not_stop_the_closing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story(tmp_path)
    story.connect("c1").frames("ticker", "ticker").end()
    story.at_ns = T0_NS + HOUR_NS + 130 * NS
    story.connect("c2").frames("ticker").end()
    story.store()
    path = story.files(TICKS)[0]
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    closer = HourCloser(tmp_path, 120.0, lambda topic, partition: 10**9)
    closer.recover(story.logs)
    (hour,) = closer.advance()
    assert (hour.rows[TICKS], hour.seals) == (2, {})
    assert f"hour {hour.hour} is closed without a seal: {path} cannot be read" in caplog.text


def test_a_null_is_not_a_zero_nor_an_empty_text(tmp_path: Path) -> None:
    story = closed(tmp_path)
    path = story.files(TICKS)[0]
    hashes = set()
    for value in (0.0, 1.0, None):
        rewrite(path, with_value("best_ask", 2, value))
        hashes.add(seal(RawReader(tmp_path), TICKS, T0_NS).sha256)
    for name, text in (("event_type", None), ("event_type", "")):
        rewrite(path, with_value(name, 2, text))
        hashes.add(seal(RawReader(tmp_path), TICKS, T0_NS).sha256)
    assert len(hashes) == 5
