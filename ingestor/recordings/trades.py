"""Trades of a recording of frames, as raw storage has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ingestor.archive.schema import SCHEMAS, read_trades
from ingestor.envelope import TRADES
from ingestor.exchange.parse import FrameError, product_of
from ingestor.recordings.formats import Frame

#: Columns of raw storage that a trade is made of, and when its frame came.
_COLUMNS = (
    "product_id", "received_at_ns", "event_type", "trade_id", "price", "size", "side", "trade_time_ns",
)  # fmt: skip
_SCHEMA = pa.schema([SCHEMAS[TRADES].field(name) for name in _COLUMNS])


class RecordedTrades:
    """Collects the trades of frames."""

    def __init__(self, products: Sequence[str] | None) -> None:
        """Begin with none.

        Args:
            products: only theirs; None: all.
        """
        self._products = None if products is None else frozenset(products)
        self._clear()

    def _clear(self) -> None:
        self._entries: list[Any] = []
        self._keys: list[tuple[str, int, str]] = []

    def add(self, frame: Frame, time_ns: int) -> None:
        """Take the trades of a frame; an entry without a product is none.

        Args:
            frame: of the channel market_trades.
            time_ns: its time.
        """
        for event in frame.events:
            for entry in event.trades:
                try:
                    product = product_of(entry)
                except FrameError:
                    continue
                if self._products is None or product in self._products:
                    # Copies: a raw entry would keep the whole line in memory.
                    self._entries.append(entry.copy())
                    self._keys.append((product, time_ns, event.type))

    def take(self) -> pa.Table | None:
        """Return the trades taken since the last call; None without any."""
        if not self._entries:
            return None
        products, times, kinds = zip(*self._keys, strict=True)
        columns = {"product_id": products, "received_at_ns": times, "event_type": kinds}
        columns |= read_trades(self._entries)
        self._clear()
        arrays = [pa.array(columns[field.name], field.type) for field in _SCHEMA]
        return pa.table(arrays, _SCHEMA)
