"""Parquet → NDJSON → Parquet is the same raw storage, and the source stays as it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster_tests.ingestor.archive.messages import (
    MINUTE_NS,
    TEN_NS,
    closing,
    dead,
    event,
    score,
    tick,
    trade,
)
from cryptovol_dagster_tests.ingestor.archive.test_ndjson import VALUES
from ingestor.archive.collection import ARCHIVED_TOPICS
from ingestor.archive.columns import column
from ingestor.archive.convert import ConvertError, convert_raw
from ingestor.archive.layout import CLOSED, CLOSED_SCORES, files_in, hour_folders, read_footer
from ingestor.archive.positions import record_gap, stored_offsets
from ingestor.archive.reader import RawReader
from ingestor.archive.rows import read_rows
from ingestor.archive.schema import SCHEMAS, time_columns, to_batch
from ingestor.archive.writer import OpenFile, write_exclusively
from ingestor.cli import cli
from ingestor.envelope import DEAD, EVENTS, SCORES_TOPIC, TICKS, TOPICS, TRADES
from ingestor.recordings import read_recording
from ingestor.settings.sections import RawFormat
from ingestor.times import HOUR_NS

LOG_ID = "abcd1234"
EVER = (0, 2**62)


def store(
    raw_dir: Path, topic: str, first: int, values: list[bytes], raw_format: RawFormat = "parquet"
) -> Path:
    file = OpenFile(raw_dir, topic, LOG_ID, 0, first, raw_format)
    file.append(to_batch(topic, 0, first, values, lambda _: TEN_NS, None), 0)
    return file.publish()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two hours of every topic, with an unreadable record, a gap of offsets and a closed hour."""
    raw_dir = tmp_path / "data" / "raw"
    for hour in range(2):
        start = TEN_NS + hour * HOUR_NS
        quotes = [tick(start + i * MINUTE_NS, 30 * hour + i) for i in range(30)]
        store(raw_dir, TICKS, 50 * hour, [*quotes, b"\xff no tick", *quotes[:2]])
        store(
            raw_dir,
            TRADES,
            9 * hour,
            [trade(start, 4), trade(start + 9, 5, entry=b'{"trade_id":"\xc3\xa9"}')],
        )
        store(raw_dir, EVENTS, 9 * hour, [event("connected", start), event("stale", start + 1, "c1", start)])
        store(raw_dir, DEAD, 9 * hour, [dead(start)])
        record = raw_dir / CLOSED / "date=2026-04-04" / f"hour={10 + hour}.json"
        write_exclusively(raw_dir / CLOSED, record, b'{"hour": "as it is"}')
    record_gap(raw_dir, TICKS, LOG_ID, 0, 33, 50, "retention")
    return raw_dir


def fingerprint(raw_dir: Path) -> dict[str, str]:
    return {
        str(path.relative_to(raw_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in raw_dir.rglob("*")
        if path.is_file()
    }


def contents(raw_dir: Path) -> dict[str, Any]:
    """Every file's footer and rows by its name without ending, and every record."""
    found: dict[str, Any] = {}
    for topic in ARCHIVED_TOPICS:
        for _, folder in hour_folders(raw_dir / topic):
            for _, path in files_in(folder):
                rows = read_rows(path, SCHEMAS[topic].names).cast(SCHEMAS[topic])
                found[str(path.relative_to(raw_dir).with_suffix(""))] = read_footer(path), rows
    for path in [*raw_dir.glob("*/_gaps/*.json"), *raw_dir.glob("_closed*/*/*.json")]:
        found[str(path.relative_to(raw_dir))] = path.read_bytes()
    return found


def test_there_and_back_is_the_same_storage(source: Path, tmp_path: Path) -> None:
    before = fingerprint(source)
    there = convert_raw(source, tmp_path / "lines", "ndjson")
    back = convert_raw(tmp_path / "lines", tmp_path / "back", "parquet")
    assert fingerprint(source) == before
    assert contents(source) == contents(tmp_path / "lines") == contents(tmp_path / "back")
    assert (there.files, there.done, there.kept, there.gaps, there.closed_hours) == (8, 8, 0, 1, 2)
    assert there.rows == back.rows == {TICKS: 66, TRADES: 4, EVENTS: 4, DEAD: 2}
    assert (there.bytes_after, there.bytes_before) == (back.bytes_before, back.bytes_after)
    assert {path.suffix for path in (tmp_path / "lines").rglob("abcd*")} == {".ndjson", ".json"}


def test_scores_and_their_closed_hours_are_copied_too(source: Path, tmp_path: Path) -> None:
    store(source, SCORES_TOPIC, 0, [score(TEN_NS), closing(0, TEN_NS), b"?"])
    record = source / CLOSED_SCORES / "date=2026-04-04" / "hour=10.json"
    write_exclusively(source / CLOSED_SCORES, record, b'{"hour": "as it is"}')
    there = convert_raw(source, tmp_path / "lines", "ndjson")
    assert (there.files, there.closed_hours, there.rows[SCORES_TOPIC]) == (9, 3, 3)
    assert contents(source) == contents(tmp_path / "lines")


def test_the_reader_and_a_replay_see_no_difference(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "lines"
    convert_raw(source, out, "ndjson")
    for topic in TOPICS:
        span = (TEN_NS + MINUTE_NS, TEN_NS + HOUR_NS + MINUTE_NS)
        assert RawReader(out).read(topic, *span).equals(RawReader(source).read(topic, *span))
        assert RawReader(out).count(topic, *span) == RawReader(source).count(topic, *span)
        assert RawReader(out).offset_gaps(topic) == RawReader(source).offset_gaps(topic)
        assert stored_offsets(out, topic, LOG_ID) == stored_offsets(source, topic, LOG_ID)
    for ours, theirs in zip(
        RawReader(out).files(TICKS, *EVER), RawReader(source).files(TICKS, *EVER), strict=True
    ):
        lines, parquet = read_recording(ours.path), read_recording(theirs.path)
        assert lines.counts.unreadable == parquet.counts.unreadable == 1
        for name, values in parquet.ticks.items():
            np.testing.assert_array_equal(lines.ticks[name], values)


def test_it_goes_on_where_it_broke_off_and_takes_what_came_since(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "lines"

    def break_off(so_far: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_raw(source, out, "ndjson", on_progress=break_off)
    store(source, DEAD, 100, [dead(TEN_NS)], "ndjson")
    before = fingerprint(out)
    again = convert_raw(source, out, "ndjson")
    assert (again.files, again.done, again.kept) == (9, 9, 1)
    assert before.items() <= fingerprint(out).items() | {("_tmp/archive.lock", before["_tmp/archive.lock"])}
    assert contents(source) == contents(out)


def test_what_differs_is_named_not_overwritten(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "lines"
    convert_raw(source, out, "ndjson")
    (path,) = [file.path for file in RawReader(out).files(TICKS, TEN_NS, TEN_NS + 1)]
    path.write_bytes(path.read_bytes().replace(b"67000.01", b"67000.99"))
    with pytest.raises(ConvertError, match=rf"{path} differs from .*: delete it"):
        convert_raw(source, out, "ndjson")


def test_only_the_hours_asked_for(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    hour_ns = TEN_NS + HOUR_NS
    done = convert_raw(source, out, "ndjson", first_hour_ns=hour_ns, last_hour_ns=hour_ns)
    assert (done.files, done.closed_hours, done.gaps) == (4, 1, 1)
    assert {path.name for path in out.rglob("hour=*")} == {"hour=11", "hour=11.json"}


def test_targets_that_are_not_its_own_are_refused(source: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    convert_raw(source, tmp_path / "lines", "ndjson")
    for out in (foreign, tmp_path / "lines"):
        with pytest.raises(ConvertError, match="is not empty, nor begun by converting"):
            convert_raw(source, out, "parquet")
    for out in (source, source / "inside", source.parent):
        with pytest.raises(ConvertError, match="is not apart from"):
            convert_raw(source, out, "ndjson")
    with pytest.raises(ConvertError, match="no raw files in the requested"):
        convert_raw(foreign, tmp_path / "new", "ndjson")
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]
    assert not (tmp_path / "new").exists()


def test_what_lines_cannot_hold_is_refused_not_changed(source: Path, tmp_path: Path) -> None:
    """A NaN, which the archive never writes: as JSON it would come back absent."""
    file = OpenFile(source, TICKS, LOG_ID, 7, 0)
    batch = to_batch(TICKS, 7, 0, [tick()], lambda _: 0, None)
    price = pa.Array.from_buffers(pa.float64(), 1, [None, pa.py_buffer(np.array([np.nan]))])
    names = batch.schema.names
    file.append(
        pa.RecordBatch.from_arrays(
            [price if name == "price" else batch[name] for name in names], schema=batch.schema
        ),
        0,
    )
    path = file.publish()
    with pytest.raises(ConvertError, match=f"{path.name} differs after conversion to ndjson"):
        convert_raw(source, tmp_path / "lines", "ndjson")
    assert list((tmp_path / "lines").rglob(f"*{path.stem}*")) == []


@st.composite
def files(draw: st.DrawFn) -> pa.RecordBatch:
    """Rows of a topic with any values but for offsets and times, which a file must have."""
    topic = draw(st.sampled_from(ARCHIVED_TOPICS))
    rows = draw(st.integers(1, 8))
    times = [TEN_NS + draw(st.integers(0, HOUR_NS - 1)) for _ in range(rows)]
    columns: dict[str, list[Any]] = {
        field.name: draw(st.lists(st.none() | VALUES[field.type], min_size=rows, max_size=rows))
        for field in SCHEMAS[topic]
    }
    columns |= {"kafka_partition": [3] * rows, "kafka_offset": list(range(5, 5 + rows))}
    columns |= dict.fromkeys(time_columns(topic), times)
    columns["schema_version"] = draw(st.lists(st.sampled_from([1, -1]), min_size=rows, max_size=rows))
    arrays = [column(columns[field.name], field.type) for field in SCHEMAS[topic]]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMAS[topic])


@settings(max_examples=25, deadline=None)
@given(files())
def test_any_values_survive_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, batch: pa.RecordBatch
) -> None:
    folder = tmp_path_factory.mktemp("convert")
    topic = next(topic for topic, schema in SCHEMAS.items() if schema == batch.schema)
    file = OpenFile(folder / "raw", topic, LOG_ID, 3, 5)
    file.append(batch, 0)
    file.publish()
    convert_raw(folder / "raw", folder / "lines", "ndjson")
    convert_raw(folder / "lines", folder / "back", "parquet")
    assert contents(folder / "raw") == contents(folder / "lines") == contents(folder / "back")


def run(source: Path, *arguments: str | Path) -> Result:
    environment = {"CRYPTOVOL__STORAGE__DATA_DIR": str(source.parent), "CRYPTOVOL_CONFIG": ""}
    return CliRunner().invoke(cli, ["convert-raw", *map(str, arguments)], env=environment)


def test_the_verb(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(source, "--to", "ndjson", "--out", tmp_path / "lines", "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert (summary["files"], summary["rows"][TICKS], summary["to"]) == (8, 66, "ndjson")
    hour = ("--from", "2026-04-04-11:00", "--until", "2026-04-04-11:00")
    told = run(source, "--to", "parquet", "--out", tmp_path / "one", *hour)
    assert "every file read back and compared" in told.stdout
    assert "files: 4, of them 0 converted before" in told.stdout
    refused = run(source, "--to", "parquet", "--out", tmp_path / "lines")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: ")
    assert refused.stderr.count("\n") == 1
    assert run(source, "--to", "csv", "--out", "x").exit_code == 2
    assert run(source, "--to", "ndjson", "--out", "x", "--from", "yesterday").exit_code == 2
    assert "cryptovol convert-raw --to ndjson" in run(source, "--help").stdout
