"""A playback as a file: the recording of a client that receives every frame."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.exchange.messages import HEARTBEATS, TICKER, TRADES, Subscribe
from ingestor.simulator.playback import Close, Line, Playback
from ingestor.simulator.server import SimulatorError


def write_recording(playback: Playback, products: tuple[str, ...], path: Path) -> None:
    """Write the whole market as `{received_at, frame}` lines, gzipped where the name ends in .gz.

    Frames are received the moment they are sent; a fault that ends the connection begins a new one. The same
    playback gives the same bytes.

    Raises:
        SimulatorError: The file cannot be written; an earlier file is unchanged.
    """
    part = path.with_name(path.name + ".part")
    try:
        with _opened(part, gzipped=path.suffix == ".gz") as file:
            while not playback.finished:
                _write_connection(playback, products, file)
        part.replace(path)
    except OSError as error:
        raise SimulatorError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _write_connection(playback: Playback, products: tuple[str, ...], file: BinaryIO) -> None:
    line = Line(playback)
    for subscription in (Subscribe(TICKER, products), Subscribe(TRADES, products), Subscribe(HEARTBEATS)):
        _write(file, playback.now_ns, line.receive(msgspec.json.encode(subscription)))
    _write(file, playback.now_ns, line.start())
    while True:
        step = line.advance(None, most_frames=1)
        _write(file, playback.now_ns, step.frames)
        if isinstance(step.then, Close):
            return


def _write(file: BinaryIO, time_ns: int, frames: list[bytes]) -> None:
    for frame in frames:
        file.write(b'{"received_at":"%b","frame":%b}\n' % (ns_to_rfc3339(time_ns).encode(), frame))


@contextmanager
def _opened(path: Path, *, gzipped: bool) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        if not gzipped:
            yield file
            return
        # Without name and time in its header the stream depends on the frames alone.
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as stream:
            yield cast(BinaryIO, stream)
