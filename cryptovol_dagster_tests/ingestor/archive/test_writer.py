"""A file appears whole, once, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cryptovol_dagster_tests.ingestor.archive.messages import MINUTE_NS, TEN_NS, tick
from ingestor import locks
from ingestor.archive import positions, writer
from ingestor.archive.errors import ArchiveError, CollisionError
from ingestor.archive.layout import footer_path, is_ndjson, read_footer
from ingestor.archive.rows import read_rows
from ingestor.archive.schema import to_batch
from ingestor.archive.writer import OpenFile, remove_abandoned
from ingestor.envelope import TICKS
from ingestor.settings.sections import RawFormat
from ingestor.times import HOUR_NS, NS

LOG_ID = "abcd1234"
FORMAT: RawFormat = "parquet"


@pytest.fixture(scope="module", autouse=True)
def _in_both_formats(raw_format: RawFormat) -> None:
    global FORMAT
    FORMAT = raw_format


def open_file(raw_dir: Path, first_offset: int, times: list[int]) -> OpenFile:
    file = OpenFile(raw_dir, TICKS, LOG_ID, 0, first_offset, FORMAT)
    values = [tick(time_ns, 10 + index) for index, time_ns in enumerate(times)]
    batch = to_batch(TICKS, 0, first_offset, values, lambda _: 0, None)
    assert file.fitting(batch) == len(times)
    file.append(batch, 0)
    return file


def visible(raw_dir: Path) -> list[Path]:
    return sorted(path for path in raw_dir.rglob("*") if path.is_file())


def published(path: Path) -> list[Path]:
    return [footer_path(path), path] if is_ndjson(path) else [path]


def test_the_name_tells_log_partition_and_first_offset_and_the_footer_the_rest(tmp_path: Path) -> None:
    path = open_file(tmp_path, 42, [TEN_NS, TEN_NS + 9, TEN_NS + 3]).publish()
    assert path == tmp_path / TICKS / "date=2026-04-04/hour=10" / f"{LOG_ID}-p0-{42:020d}.{FORMAT}"
    footer = read_footer(path)
    assert (footer.first_offset, footer.last_offset, footer.rows) == (42, 44, 3)
    assert (footer.min_time_ns, footer.max_time_ns) == (TEN_NS, TEN_NS + 9)
    assert footer.connections == {"c1": (10, 12)}
    assert read_rows(path, ["kafka_offset"])["kafka_offset"].to_pylist() == [42, 43, 44]
    assert visible(tmp_path) == published(path)


def test_nothing_is_visible_before_it_is_published(tmp_path: Path) -> None:
    file = open_file(tmp_path, 0, [TEN_NS] * (writer.ROW_GROUP_ROWS + 1))
    (temporary,) = visible(tmp_path)
    assert temporary.parent.name == "_tmp"
    file.discard()
    assert visible(tmp_path) == []


def test_sequence_ranges_are_kept_for_each_connection(tmp_path: Path) -> None:
    file = open_file(tmp_path, 0, [TEN_NS, TEN_NS])
    file.append(to_batch(TICKS, 0, 2, [tick(TEN_NS, 3, connection="c2")], lambda _: 0, None), 0)
    assert read_footer(file.publish()).connections == {"c1": (10, 11), "c2": (3, 3)}


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [
        (TEN_NS + HOUR_NS - 1, TEN_NS + HOUR_NS + 10 * NS - 1, True),
        (TEN_NS + HOUR_NS - 1, TEN_NS + HOUR_NS + 10 * NS, False),
        (TEN_NS, TEN_NS - 10 * NS, True),
        (TEN_NS, TEN_NS - 10 * NS - 1, False),
        (TEN_NS, TEN_NS + 59 * MINUTE_NS, True),
    ],
)
def test_a_file_is_cut_at_its_hour_but_for_ten_seconds_of_disorder(
    tmp_path: Path, first: int, second: int, fits: bool
) -> None:
    file = OpenFile(tmp_path, TICKS, LOG_ID, 0, 0)
    batch = to_batch(TICKS, 0, 0, [tick(first), tick(second), tick(first)], lambda _: 0, None)
    assert file.fitting(batch) == (3 if fits else 1)


def test_of_two_writers_at_one_offset_the_second_is_refused(tmp_path: Path) -> None:
    first, second = open_file(tmp_path, 7, [TEN_NS]), open_file(tmp_path, 7, [TEN_NS] * 5)
    path = first.publish()
    with pytest.raises(CollisionError, match="another writer has stored from this offset on"):
        second.publish()
    assert read_footer(path).rows == 1
    assert visible(tmp_path) == published(path)


def test_offsets_recorded_as_lost_are_not_stored_as_well(tmp_path: Path) -> None:
    file = open_file(tmp_path, 7, [TEN_NS])
    positions.record_gap(tmp_path, TICKS, LOG_ID, 0, 7, 20, "retention")
    with pytest.raises(CollisionError, match="recorded these offsets as lost"):
        file.publish()


@pytest.mark.parametrize("step", ["fsync", "link", "mkdir"])
def test_a_failing_step_leaves_nothing_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    kept = open_file(tmp_path, 0, [TEN_NS]).publish()
    file = open_file(tmp_path, 1, [TEN_NS + HOUR_NS])

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(ArchiveError, match=r"cannot write .*hour=11.*: No space left on device"):
        file.publish()
    assert visible(tmp_path) == published(kept)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    """The kernel refuses in the middle of a file: a limit on file sizes stands in for a full disk."""
    code = (
        "import resource, signal, pathlib, sys, random\n"
        "from cryptovol_dagster_tests.ingestor.archive.messages import TEN_NS, tick\n"
        "from ingestor.archive.errors import ArchiveError\n"
        "from ingestor.archive.schema import to_batch\n"
        "from ingestor.archive.writer import OpenFile\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "file = OpenFile(pathlib.Path(sys.argv[1]), 'ticks.raw', 'abcd1234', 0, 0, sys.argv[2])\n"
        "noise = random.Random(1)\n"
        "entries = [b'\"%s\"' % noise.randbytes(200).hex().encode() for _ in range(9000)]\n"
        "values = [tick(entry=entry) for entry in entries]\n"
        "try:\n"
        "    file.append(to_batch('ticks.raw', 0, 0, values, lambda i: 0, None), 0)\n"
        "    file.publish()\n"
        "except ArchiveError as error:\n"
        "    print(error)\n"
        "file.discard()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), FORMAT], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(f"raw storage cannot write {tmp_path / TICKS}")
    assert result.stdout.endswith("File too large\n")
    assert result.stderr == ""
    assert visible(tmp_path) == []


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / TICKS).write_text("not a folder")
    with pytest.raises(ArchiveError, match=r"raw storage cannot write .*ticks\.raw.*: "):
        open_file(tmp_path, 0, [TEN_NS]).publish()


def test_only_files_whose_writer_died_are_swept_away(tmp_path: Path) -> None:
    folder = tmp_path / TICKS / "_tmp"
    folder.mkdir(parents=True)
    dead, alive, young = folder / "dead", folder / "alive", folder / "young"
    for path in (dead, alive, young):
        path.write_bytes(b"")
    for path in (dead, alive):
        os.utime(path, (1, 1))
    with alive.open("rb") as held:
        locks.lock(held)
        remove_abandoned(tmp_path / TICKS)
        assert visible(tmp_path) == [alive, young]
