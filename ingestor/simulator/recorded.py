"""Recordings as segments to play: real frames, verbatim except (where necessary) for their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from ingestor.exchange.messages import TICKER
from ingestor.recordings import RecordedFrame, RecordingCounts, RecordingError, iter_frames
from ingestor.simulator.frames import MarketFrame, Segment

_BLOCK_FRAMES = 1_000
_PRODUCT = re.compile(rb'"product_id"\s*:\s*"([^"\\]{1,64})"')
_NUMBER = re.compile(rb'"sequence_num"\s*:\s*"?(\d+)"?')


class RecordedMarket:
    """The connections of one or more recordings, file after file.

    Args:
        paths: Recordings that keep the exchange's frames.

    Raises:
        RecordingError: A file is absent, unreadable, or has no frames.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: list[tuple[Path, list[_Summary]]] = []
        #: Lines that are left out because they have no readable frame.
        self.unreadable_lines = 0
        #: Lines that are left out because the recorder wrote the one before them twice.
        self.repeated_lines = 0
        for path in paths:
            counts = RecordingCounts()
            frames = _Once(iter_frames(path, counts))
            summaries = _summaries(frames)
            if not summaries:
                raise RecordingError(f"{path}: contains no frame of the exchange")
            self._files.append((path, summaries))
            self.unreadable_lines += counts.unreadable
            self.repeated_lines += frames.repeated

    @property
    def products(self) -> tuple[str, ...]:
        """Every product of the recordings, sorted."""
        connections = (connection for _, summaries in self._files for connection in summaries)
        return tuple(sorted(set().union(*(connection.products for connection in connections))))

    def segments(self) -> Iterator[Segment]:
        """Yield one segment per connection; consume each before the next. Memory use is constant."""
        for path, summaries in self._files:
            by_connection = groupby(_Once(iter_frames(path)), key=lambda frame: frame.connection)
            for (_, frames), summary in zip(by_connection, summaries, strict=True):
                yield Segment(
                    summary.start_ns,
                    _blocks(frames),
                    recorded_channels=frozenset(summary.channels),
                    recorded_products=frozenset(summary.products),
                )


class _Summary:
    """Content of one connection of a recording."""

    def __init__(self, start_ns: int) -> None:
        self.start_ns = start_ns
        self.channels: set[str] = set()
        self.products: set[str] = set()


class _Once:
    """Frames without those that repeat the one before byte for byte.

    Played with a number of its own, a line that a recorder wrote twice would be news to the listener.
    """

    def __init__(self, frames: Iterator[RecordedFrame]) -> None:
        self._frames = frames
        self.repeated = 0

    def __iter__(self) -> Iterator[RecordedFrame]:
        before = None
        for frame in self._frames:
            if frame.data == before:
                self.repeated += 1
            else:
                before = frame.data
                yield frame


def _summaries(frames: Iterable[RecordedFrame]) -> list[_Summary]:
    summaries: list[_Summary] = []
    connection = None
    for frame in frames:
        if frame.connection != connection:
            connection = frame.connection
            summaries.append(_Summary(frame.event_time_ns))
        summaries[-1].channels.add(frame.channel)
        summaries[-1].products.update(_products(frame.data))
    return summaries


def _blocks(frames: Iterator[RecordedFrame]) -> Iterator[list[MarketFrame]]:
    block: list[MarketFrame] = []
    newest_ns = 0
    for frame in frames:
        # Channels of a real connection are a few ms out of order; the market's clock only goes forward.
        newest_ns = max(newest_ns, frame.event_time_ns)
        block.append(_market_frame(frame, newest_ns))
        if len(block) == _BLOCK_FRAMES:
            yield block
            block = []
    if block:
        yield block


def _market_frame(frame: RecordedFrame, time_ns: int) -> MarketFrame:
    number = _NUMBER.search(frame.data)
    if number is None:
        raise RecordingError(f"frame {frame.sequence_num} of {frame.channel} spells its number unreadably")
    return MarketFrame(
        time_ns,
        frame.channel,
        frozenset(_products(frame.data)),
        frame.data[: number.start(1)],
        frame.data[number.end(1) :],
        frame.sequence_num,
        len(_PRODUCT.findall(frame.data)) if frame.channel == TICKER else 0,
    )


def _products(data: bytes) -> set[str]:
    return {product.decode() for product in _PRODUCT.findall(data)}
