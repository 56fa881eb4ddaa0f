"""Letters of ``feed.dead`` from raw storage, some files in memory at a time."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from ingestor.archive.errors import ArchiveError
from ingestor.archive.reader import RawFile, RawReader
from ingestor.archive.schema import UNREADABLE
from ingestor.envelope import DEAD
from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.exchange.parse import FrameError, parse_frame, read_entry
from ingestor.exchange.reasons import cut_from, entry_place, printable, reason_class
from ingestor.feed.connection import check_entry_bounds

_COLUMNS = ["schema_version", "at_ns", "connection_id", "sequence_num", "reason", "payload"]
_NO_LETTER = "not a message of ours on feed.dead"
#: Letters may be 800 kB each: this many (compressed) bytes of their files are read at once.
_BYTES_AT_ONCE = 8 * 1024 * 1024
_ROWS_AT_ONCE = 100


@dataclass(frozen=True)
class Letter:
    """Bytes that could not be read, and the facts known about them.

    Attributes:
        at_ns: receiving clock, ns UTC.
        connection_id: the connection they came on; empty where the record itself is unreadable.
        sequence_num: the frame's number, where it could be read.
        reason: why they could not be read then.
        data: the bytes as they came, as far as they were kept.
    """

    at_ns: int
    connection_id: str
    sequence_num: int | None
    reason: str
    data: bytes

    @property
    def reason_class(self) -> str:
        """Class of the reason, the same for all letters of this fault."""
        return reason_class(self.reason)

    @property
    def whole_bytes(self) -> int:
        """Number of received bytes; more than `data` where the letter was cut."""
        return cut_from(self.reason) or len(self.data)

    def beginning(self, characters: int) -> str:
        """Return the first characters, safe to print: other bytes and control characters are escaped."""
        text = printable(self.data[: 4 * characters].decode("utf-8", "backslashreplace"))
        return text if len(text) <= characters else f"{text[:characters]}…"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON: the bytes in base64, and as text where they are UTF-8."""
        values = {
            "at": ns_to_rfc3339(self.at_ns),
            "at_ns": self.at_ns,
            "connection_id": self.connection_id,
            "sequence_num": self.sequence_num,
            "reason": self.reason,
            "class": self.reason_class,
            "whole_bytes": self.whole_bytes,
            "data_base64": base64.b64encode(self.data).decode(),
        }
        with suppress(UnicodeDecodeError):
            values["text"] = self.data.decode()
        return values


def iter_letters(raw_dir: Path, start_ns: int, end_ns: int, reason: str | None = None) -> Iterator[Letter]:
    """Yield the letters received in ``[start_ns, end_ns)``, span by span, each in the order stored.

    Args:
        raw_dir: root of raw storage.
        start_ns: first receiving time, ns UTC.
        end_ns: receiving time at which to stop.
        reason: only letters whose reason contains this text, ignoring case.

    Raises:
        ArchiveError: there is no raw storage, or a file in it is foreign or corrupt.
    """
    if not raw_dir.is_dir():
        raise ArchiveError(
            f"{raw_dir} is not a folder: nothing was recorded there (cryptovol config: storage)"
        )
    reader = RawReader(raw_dir)
    for begin_ns, stop_ns in _spans(reader.files(DEAD, start_ns, end_ns), start_ns, end_ns):
        table = reader.read(DEAD, begin_ns, stop_ns, _COLUMNS)
        for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            for letter in map(_letter, batch.to_pylist()):
                if reason is None or reason.casefold() in letter.reason.casefold():
                    yield letter


def read_again(letter: Letter, now_ns: int, future_limit_ns: int) -> str | None:
    """Read a letter with the parser of today.

    Args:
        letter: the letter to read.
        now_ns: the clock against which a time of the future is judged.
        future_limit_ns: how far ahead of it a frame may be.

    Returns:
        The reason why it still cannot be used, in one line; None where it can be.
    """
    if letter.whole_bytes > len(letter.data):
        return f"only {len(letter.data)} of its {letter.whole_bytes} bytes were kept"
    place = entry_place(letter.reason)
    try:
        if place is not None:
            channel, event_index, entry_index = place
            entry = msgspec.Raw(letter.data)
            read_entry(channel, entry)
            check_entry_bounds(entry, event_index, entry_index)
            return None
        frame = parse_frame(letter.data)
    except FrameError as error:
        return error.reason
    ahead_ns = frame.event_time_ns - now_ns
    return f"its time is still {ahead_ns / 1e9:.0f} s ahead" if ahead_ns > future_limit_ns else None


def _spans(files: Sequence[RawFile], start_ns: int, end_ns: int) -> Iterator[tuple[int, int]]:
    """Split a span of time so that each part touches a bounded amount of files."""
    bounds, size = [start_ns], 0
    for file in sorted(files, key=lambda file: file.footer.min_time_ns):
        if size > _BYTES_AT_ONCE and file.footer.min_time_ns > bounds[-1]:
            bounds.append(file.footer.min_time_ns)
            size = 0
        size += file.path.stat().st_size
    if files:
        yield from pairwise([*bounds, end_ns])


def _letter(row: dict[str, Any]) -> Letter:
    data = base64.b64decode(row["payload"] or "")
    if row["schema_version"] == UNREADABLE:
        return Letter(row["at_ns"], "", None, _NO_LETTER, data)
    return Letter(row["at_ns"], row["connection_id"], row["sequence_num"], row["reason"], data)
