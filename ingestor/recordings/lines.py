"""Lines of a plain or gzipped file, in blocks, with memory bounded and every failure named."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ingestor.errors import CryptovolError

_BLOCK_BYTES = 1 << 20
#: The largest frame the exchange sends passes 4 MiB; a longer line is not from its recording.
_MAX_LINE_BYTES = 64 << 20
_GZIP_MAGIC = b"\x1f\x8b"


class RecordingError(CryptovolError):
    """A recording that cannot be read; the message is one line naming file and line."""


def iter_line_blocks(path: Path) -> Iterator[list[bytes]]:
    """Yield the file's lines without their newlines, a block of about 1 MiB at a time.

    Args:
        path: A text file, plain or gzipped (recognised by its first bytes).

    Yields:
        Lists of lines. A gzip stream that ends early (its writer was killed) yields its complete part.

    Raises:
        RecordingError: The file cannot be opened, its compression is broken, or a line passes 64 MiB.
    """
    line_count = 0
    tail: list[bytes] = []
    tail_bytes = 0
    try:
        for block in _blocks(path):
            lines = block.split(b"\n")
            if len(lines) == 1:
                tail.append(block)
                tail_bytes += len(block)
                if tail_bytes > _MAX_LINE_BYTES:
                    raise RecordingError(
                        f"{path}: line {line_count + 1}: longer than {_MAX_LINE_BYTES >> 20} MiB"
                    )
                continue
            lines[0] = b"".join((*tail, lines[0]))
            tail = [lines.pop()]
            tail_bytes = len(tail[0])
            line_count += len(lines)
            yield lines
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read: {error.strerror or error}") from error
    except zlib.error as error:
        raise RecordingError(f"{path}: line {line_count + 1}: broken gzip stream: {error}") from error
    last = b"".join(tail)
    if last:
        yield [last]


def starts_with(path: Path, magic: bytes) -> bool:
    """Return whether the file begins with these bytes.

    Raises:
        RecordingError: The file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read: {error.strerror or error}") from error


def _blocks(path: Path) -> Iterator[bytes]:
    gzipped = starts_with(path, _GZIP_MAGIC)
    with path.open("rb") as file:
        yield from _gunzip(file) if gzipped else iter(lambda: file.read(_BLOCK_BYTES), b"")


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    """Decompress, member after member: recorders append by opening the file again."""
    stream = zlib.decompressobj(wbits=31)
    data = file.read(_BLOCK_BYTES)
    while data:
        yield stream.decompress(data, _BLOCK_BYTES)
        if stream.eof:
            data = stream.unused_data.lstrip(b"\x00") or file.read(_BLOCK_BYTES)
            stream = zlib.decompressobj(wbits=31)
        else:
            data = stream.unconsumed_tail or file.read(_BLOCK_BYTES)
    yield stream.flush()
