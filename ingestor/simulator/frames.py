"""Input of the playback from both sources: frames without numbers, in segments of one connection each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ingestor.exchange.clock import ns_to_rfc3339


class MarketFrame(NamedTuple):
    """A frame before a connection numbers it: `head` + the number + `tail`.

    Attributes:
        time_ns: The frame's time, which is the market's.
        channel: Its channel, as frames name it.
        products: Its products; empty where it has none.
        head: Bytes before the sequence number.
        tail: Bytes after it.
        sequence_num: The number that a recorded frame had; −1 for a synthetic one.
        ticks: Ticker entries in it.
    """

    time_ns: int
    channel: str
    products: frozenset[str]
    head: bytes
    tail: bytes
    sequence_num: int = -1
    ticks: int = 0


@dataclass(frozen=True)
class Segment:
    """A stretch of market that one connection of the exchange delivered, or could have.

    Attributes:
        start_ns: Its first moment.
        blocks: Its frames in order, in lists of any length; iterated once.
        opening: Content of a snapshot at `start_ns`; empty where the frames begin with their own snapshots.
        recorded_channels: Channels of its frames, where it is a recorded connection. Such a
            connection can be sent with its own numbers to a client that has subscribed to just these.
        recorded_products: Products of these frames.
    """

    start_ns: int
    blocks: Iterator[list[MarketFrame]]
    opening: tuple[MarketFrame, ...] = ()
    recorded_channels: frozenset[str] = frozenset()
    recorded_products: frozenset[str] = frozenset()


def frame_head(channel: str, time_ns: int) -> bytes:
    """Return a frame up to its sequence number, as the exchange writes it."""
    return f'{{"channel":"{channel}","timestamp":"{ns_to_rfc3339(time_ns)}","sequence_num":'.encode()


def own_frame(channel: str, time_ns: int, events: bytes) -> MarketFrame:
    """Return a frame of the simulator itself, without a product.

    Args:
        channel: Its channel.
        time_ns: Its time.
        events: Its events, as a JSON list.
    """
    return MarketFrame(
        time_ns, channel, frozenset(), frame_head(channel, time_ns), b',"events":' + events + b"}"
    )
