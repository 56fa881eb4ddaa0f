"""Output of a reader: tick arrays and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt


class TickArrays(TypedDict):
    """Ticks in recorded order, all arrays equally long, with the fields of `core.market.ticks.TickColumns`.

    They are declared twice because the recorder may not import the pipeline, and core imports no reader.
    Codes mean the same in every chunk of one recording: later chunks may only extend `products` and
    `connections`.
    """

    products: tuple[str, ...]
    connections: tuple[str, ...]
    product: npt.NDArray[np.int32]
    connection: npt.NDArray[np.int32]
    event_time_ns: npt.NDArray[np.int64]
    sequence_num: npt.NDArray[np.int64]
    event_index: npt.NDArray[np.int16]
    entry_index: npt.NDArray[np.int16]
    bid: npt.NDArray[np.float64]
    ask: npt.NDArray[np.float64]
    bid_size: npt.NDArray[np.float64]
    ask_size: npt.NDArray[np.float64]
    price: npt.NDArray[np.float64]
    gap_before: npt.NDArray[np.bool_]


class UnreadableLine(NamedTuple):
    """A line (counted from 1) that is not a frame of the exchange, with the reason."""

    line: int
    reason: str


@dataclass
class RecordingCounts:
    """Counts of a reader; they grow while the recording is read.

    Attributes:
        format: Name of the recognised format.
        lines: Lines read, blank ones left out (rows, for raw files).
        frames: Frames by channel.
        ticks: Entries of the ticker channel, of every product, before any product filter.
        unreadable: Lines without a readable frame.
        first_unreadable: The first of them.
        unknown_channels: Frames of channels that `ingestor.exchange` does not know (also counted in
            `frames`).
        gaps: Breaks of the sequence.
        missing: Sequence numbers missing in these breaks.
        repeats: Frames whose sequence number the connection had already passed; without sequence numbers,
            lines identical to the line before.
        gaps_known: False where the source cannot tell whether messages were lost (no sequence numbers; a raw
            Parquet file without the `feed.events` beside it).
    """

    format: str = ""
    lines: int = 0
    frames: Counter[str] = field(default_factory=Counter)
    ticks: int = 0
    unreadable: int = 0
    first_unreadable: UnreadableLine | None = None
    unknown_channels: Counter[str] = field(default_factory=Counter)
    gaps: int = 0
    missing: int = 0
    repeats: int = 0
    gaps_known: bool = True

    def add_unreadable(self, line: int, reason: str) -> None:
        """Count one unreadable line; the first is kept with its number and reason."""
        self.unreadable += 1
        if self.first_unreadable is None:
            self.first_unreadable = UnreadableLine(line, reason)


@dataclass(frozen=True)
class Recording:
    """A whole recording in memory."""

    ticks: TickArrays
    counts: RecordingCounts


_DTYPES: dict[str, type[np.generic]] = {
    "product": np.int32,
    "connection": np.int32,
    "event_time_ns": np.int64,
    "sequence_num": np.int64,
    "event_index": np.int16,
    "entry_index": np.int16,
    "bid": np.float64,
    "ask": np.float64,
    "bid_size": np.float64,
    "ask_size": np.float64,
    "price": np.float64,
    "gap_before": np.bool_,
}
ARRAY_FIELDS = tuple(_DTYPES)


def tick_arrays(
    products: tuple[str, ...], connections: tuple[str, ...], columns: Mapping[str, npt.ArrayLike]
) -> TickArrays:
    """Build typed arrays from columns of any array-like, in the contract's dtypes."""
    arrays = {name: np.asarray(columns[name], dtype=dtype) for name, dtype in _DTYPES.items()}
    return TickArrays(products=products, connections=connections, **arrays)  # type: ignore[typeddict-item]


def concatenate(chunks: list[TickArrays], products: tuple[str, ...] = ()) -> TickArrays:
    """Join one recording's chunks; without chunks, return empty arrays of these `products`."""
    if not chunks:
        return tick_arrays(products, (), dict.fromkeys(ARRAY_FIELDS, ()))
    columns = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in ARRAY_FIELDS}
    return tick_arrays(chunks[-1]["products"], chunks[-1]["connections"], columns)
