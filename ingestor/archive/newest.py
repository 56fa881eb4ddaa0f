"""The newest rows of a topic, from which an archive that starts learns where its predecessor was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.archive.layout import FileName, files_in, hour_folders
from ingestor.archive.rows import read_rows
from ingestor.times import NS

#: How far back it is read: many times the interval of checkpoints and of closing records.
RECOVERED_NS = 600 * NS


def newest_rows(
    raw_dir: Path, topic: str, log_id: str, columns: Sequence[str], clock: str
) -> list[tuple[FileName, pa.Table]]:
    """Return the newest rows of each partition of a log, file by file, each partition's in order.

    Args:
        raw_dir: root of raw storage.
        topic: name without prefix.
        log_id: id of the log.
        columns: their names.
        clock: the column of the wall clock; files are read from `RECOVERED_NS` before its newest value on.

    Raises:
        ArchiveError: a file is foreign or corrupt.
    """
    newest_first: dict[int, list[tuple[FileName, Path]]] = {}
    for _, folder in hour_folders(raw_dir / topic):
        for name, path in files_in(folder):
            if name.log_id == log_id:
                newest_first.setdefault(name.partition, []).append((name, path))
    tables: list[tuple[FileName, pa.Table]] = []
    for files in newest_first.values():
        tables += reversed(_back_to(sorted(files, reverse=True), columns, clock))
    return tables


def _back_to(
    newest_first: list[tuple[FileName, Path]], columns: Sequence[str], clock: str
) -> list[tuple[FileName, pa.Table]]:
    taken: list[tuple[FileName, pa.Table]] = []
    newest_ns: int | None = None
    for name, path in newest_first:
        table = read_rows(path, columns)
        taken.append((name, table))
        low, high = (value.as_py() for value in pc.call_function("min_max", [table[clock]]).values())
        if low is None:
            continue  # nothing in it can be read
        newest_ns = high if newest_ns is None else newest_ns
        if low < newest_ns - RECOVERED_NS:
            break
    return taken
