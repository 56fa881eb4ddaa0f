"""Recordings as the frames that were received, byte for byte, for the simulator to send again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from ingestor.exchange.clock import rfc3339_to_ns
from ingestor.recordings.arrays import RecordingCounts
from ingestor.recordings.formats import FlattenedTickers, LineFormat, ReceivedFrames, SessionLog, recognise
from ingestor.recordings.lines import RecordingError, iter_line_blocks
from ingestor.recordings.raw import raw_format
from ingestor.recordings.sequence import ConnectionLog


class RecordedFrame(NamedTuple):
    """One frame as it was received.

    Attributes:
        received_at_ns: When the recorder received it; None where unknown.
        connection: Index of the connection in the recording.
        channel: The frame's channel.
        event_time_ns: The frame's own time.
        sequence_num: Its place in the connection.
        data: The frame, verbatim.
    """

    received_at_ns: int | None
    connection: int
    channel: str
    event_time_ns: int
    sequence_num: int
    data: bytes


class _Head(msgspec.Struct, gc=False):
    channel: str
    timestamp: str
    sequence_num: int


class _Received(msgspec.Struct, gc=False):
    frame: msgspec.Raw
    received_at: str | None = None


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_received = msgspec.json.Decoder(_Received).decode


def iter_frames(path: Path | str, counts: RecordingCounts | None = None) -> Iterator[RecordedFrame]:
    """Yield the frames of every channel as they were received, memory flat.

    Args:
        path: Verbatim frames, `{received_at, frame}` lines or a session log, plain or gzipped.
        counts: Grows while reading: lines, frames by channel, unreadable lines (these are left out), gaps,
            repeats.

    Raises:
        RecordingError: The file is absent, empty, not a recording, or has no verbatim frames (flattened
            ticker lines and raw files have entries only).
    """
    path = Path(path)
    counts = RecordingCounts() if counts is None else counts
    if (ours := raw_format(path)) is not None:
        raise RecordingError(f"{path}: {ours} contains ticker entries, not the exchange's frames")
    line_format = recognise(path)
    if isinstance(line_format, FlattenedTickers):
        raise RecordingError(f"{path}: flattened ticker lines are not the exchange's frames")
    counts.format = line_format.name
    log = ConnectionLog(path.name.partition(".")[0], counts)
    line_number = 0
    for lines in iter_line_blocks(path):
        for line in lines:
            line_number += 1
            if not line.strip():
                continue
            counts.lines += 1
            try:
                received = _received(line, line_format)
                if received is None:
                    continue
                received_at_ns, data = received
                head = _decode_head(data)
                time_ns = rfc3339_to_ns(head.timestamp)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                counts.add_unreadable(line_number, str(error))
                continue
            counts.frames[head.channel] += 1
            if isinstance(line_format, SessionLog):
                connection = log.observe_named(
                    line_format.connection, head.sequence_num, holds_opening=line_format.holds_opening
                )
            else:
                connection = log.observe(head.sequence_num, time_ns)
            yield RecordedFrame(
                received_at_ns, connection.code, head.channel, time_ns, head.sequence_num, data
            )


def _received(line: bytes, line_format: LineFormat) -> tuple[int | None, bytes] | None:
    """Return receive time and verbatim frame of a line; None for lines that are not from the socket."""
    if isinstance(line_format, SessionLog):
        entry = line_format.received(line)
        return None if entry is None else (round(entry.ts * 1e9), entry.data.encode())
    if isinstance(line_format, ReceivedFrames):
        received = _decode_received(line)
        at_ns = None if received.received_at is None else rfc3339_to_ns(received.received_at)
        return at_ns, bytes(received.frame)
    return None, line.strip()
