"""Raw storage as the pipeline sees it: the core's columns out of the recorder's files, and closed hours.

Belongs here: order of rows, gap flags, and the counts of raw storage. Does not belong here: cleaning (core)
or the file rule (`ingestor.archive`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cryptovol_dagster.core.market.cleaning import flag_gaps
from cryptovol_dagster.core.market.ticks import TickColumns, TradeColumns
from cryptovol_dagster.core.times import hour_key, hour_keys
from ingestor.archive.layout import CLOSED_SCORES, ClosedHour
from ingestor.archive.member_name import archive_runs
from ingestor.archive.reader import RawReader
from ingestor.audit.findings import Audit
from ingestor.audit.hours import audit
from ingestor.envelope import EVENTS, PROGRESS_MARK, SCORES_TOPIC, TICKS, TRADES

_TICK_FIELDS = {
    "event_time_ns": "event_time_ns",
    "sequence_num": "sequence_num",
    "event_index": "event_index",
    "entry_index": "entry_index",
    "bid": "best_bid",
    "ask": "best_ask",
    "bid_size": "best_bid_quantity",
    "ask_size": "best_ask_quantity",
    "price": "price",
}
_TICK_COLUMNS = ("product_id", "connection_id", "received_at_ns", *_TICK_FIELDS.values())
_TRADE_COLUMNS = (
    "product_id", "received_at_ns", "event_type", "trade_id", "price", "size", "side", "trade_time_ns",
)  # fmt: skip
_NUMERIC_ID = pc.MatchSubstringOptions(r"^[0-9]{1,18}$")


@dataclass(frozen=True)
class RawStore:
    """Reads raw storage for the `ticks` asset, its checks and the closed-hour sensor."""

    raw_dir: Path

    @cached_property
    def reader(self) -> RawReader:
        """The recorder's own reader, kept because it remembers footers."""
        return RawReader(self.raw_dir)

    def audit(self, start_ns: int, end_ns: int, *, with_seals: bool = True) -> Audit:
        """Account for every sequence number and offset of a span, and for the seals of its closed hours."""
        still_storing = archive_runs(self.raw_dir)
        return audit(self.reader, start_ns, end_ns, still_storing=still_storing, with_seals=with_seals)

    def hours_with_ticks(self) -> list[str]:
        """Return the hours with ticks, closed or not, oldest first; from footers alone."""
        files = self.reader.files(TICKS, 0, 2**62)
        return sorted(
            {key for file in files for key in hour_keys(file.footer.min_time_ns, file.footer.max_time_ns + 1)}
        )

    def recorded_hours(self) -> set[str]:
        """Return the hours with files of ticks or trades; from names alone."""
        return {hour_key(hour_ns) for topic in (TICKS, TRADES) for hour_ns in self.reader.hours(topic)}

    def closed_hours(self, after: str | None = None) -> list[ClosedHour]:
        """List the hours that raw storage has closed, oldest first; numbers only."""
        return self.reader.closed_hours(after)

    def closed_hour(self, key: str) -> ClosedHour | None:
        """Return the newest record of a closed hour; None while it is not closed."""
        return self.reader.closed_hour(key)

    def scores(self, start_ns: int, end_ns: int) -> pa.Table:
        """Read the archived scores whose bars end in ``[start_ns, end_ns)``, every revision of each.

        Records of closed partitions and unreadable ones are left out; they stay in raw storage.

        Args:
            start_ns: first end of a bar, UTC nanoseconds. A bar that ends with an hour ends at the start of
                the next one.
            end_ns: end of the ends, exclusive.

        Returns:
            The columns of ``SCHEMAS[SCORES_TOPIC]`` in the order of (log, partition, offset).

        Raises:
            ArchiveError: a file is foreign or corrupt.
        """
        table = self.reader.read(SCORES_TOPIC, start_ns, end_ns)
        progress = _call("starts_with", table["product_id"], options=pc.MatchSubstringOptions(PROGRESS_MARK))
        return table.filter(_call("invert", progress))  # an unreadable record has no product

    def closed_score_hours(self, after: str | None = None) -> list[ClosedHour]:
        """List the hours whose scores are all stored, oldest first; numbers only."""
        return self.reader.closed_hours(after, closed=CLOSED_SCORES)

    def closed_score_hour(self, key: str) -> ClosedHour | None:
        """Return the newest record of an hour whose scores are all stored; None before that."""
        return self.reader.closed_hour(key, closed=CLOSED_SCORES)

    def servers(self) -> dict[str, int]:
        """Count the connections by who served them, as the server called itself, else its address.

        The simulator's name is ``cryptovol-simulator``, which distinguishes its recordings from the real
        market.
        """
        table = self.reader.read(EVENTS, 0, 2**62, ["kind", "payload"])
        details = [
            json.loads(payload)
            for payload in table.filter(_equal(table["kind"], "connected"))["payload"].to_pylist()
        ]
        return dict(Counter(detail["server"] or detail["url"] for detail in details))

    def ticks(
        self,
        start_ns: int,
        end_ns: int,
        products: Sequence[str],
        gaps: Mapping[str, NDArray[np.int64]],
    ) -> TickColumns:
        """Read the ticks of ``[start_ns, end_ns)`` in the order they were recorded, with `gap_before` set.

        Args:
            start_ns: first event time.
            end_ns: end of the event times, exclusive.
            products: dictionary of the result; other products are left out.
            gaps: first missing sequence number of every gap, ascending, by connection id.
        """
        ticks = tick_columns(self._in_order(TICKS, start_ns, end_ns, _TICK_COLUMNS, products), products)
        return flag_gaps(ticks, gaps)

    def trades(self, start_ns: int, end_ns: int, products: Sequence[str]) -> TradeColumns:
        """Read the trades whose frames fall into ``[start_ns, end_ns)``; none where the feed had no trades.

        A trade that lacks id, price, size, side or time is left out; it stays in raw storage.
        """
        table = self._in_order(TRADES, start_ns, end_ns, _TRADE_COLUMNS, products)
        return trade_columns(table, products)

    def _in_order(
        self, topic: str, start_ns: int, end_ns: int, columns: Sequence[str], products: Sequence[str]
    ) -> pa.Table:
        table = self.reader.read(topic, start_ns, end_ns, list(columns))
        if len({file.footer.log_id for file in self.reader.files(topic, start_ns, end_ns)}) > 1:
            # Offsets order one log. A recorder with an embedded broker begins a new log at every start, and
            # the logs' names do not show their order; the clock of reception does.
            order = np.argsort(table["received_at_ns"].to_numpy(), kind="stable")
            table = table.take(pa.array(order))
        return table.filter(
            _call(
                "is_in",
                table["product_id"],
                options=pc.SetLookupOptions(pa.array(list(products), pa.string())),
            )
        )

    def gaps(self, start_ns: int, end_ns: int) -> dict[str, NDArray[np.int64]]:
        """Return the first missing number of every gap that the feed reported, ascending, by connection."""
        table = self.reader.read(EVENTS, start_ns, end_ns, ["kind", "connection_id", "payload"])
        found: dict[str, list[int]] = {}
        for row in table.filter(_equal(table["kind"], "gap")).to_pylist():
            detail: dict[str, Any] = json.loads(row["payload"])
            found.setdefault(row["connection_id"], []).append(int(detail["from_sequence"]))
        return {connection: np.unique(np.array(firsts)) for connection, firsts in found.items()}


def tick_columns(table: pa.Table, products: Sequence[str] | None = None) -> TickColumns:
    """Convert ticks in the columns of raw storage to the core's; no gap is flagged.

    Args:
        table: at least the columns of a quote, every row a tick.
        products: dictionary of the result, by default the products of the table.
    """
    product, known = _codes(table["product_id"], None if products is None else tuple(products))
    connection, connections = _codes(table["connection_id"], None)
    return TickColumns.from_arrays(
        {
            **{ours: table[theirs].to_numpy() for ours, theirs in _TICK_FIELDS.items()},
            "products": known,
            "product": product,
            "connections": connections,
            "connection": connection,
            "gap_before": np.zeros(table.num_rows, dtype=np.bool_),
        }
    )


def trade_columns(table: pa.Table, products: Sequence[str] | None = None) -> TradeColumns:
    """Convert trades in the columns of raw storage to the core's.

    Args:
        table: at least the columns of a trade; a row that lacks one is left out.
        products: dictionary of the result, by default the products of the table.
    """
    table = table.select(list(_TRADE_COLUMNS)).drop_null()
    table = table.filter(_call("match_substring_regex", table["trade_id"], options=_NUMERIC_ID))
    product, known = _codes(table["product_id"], None if products is None else tuple(products))
    return TradeColumns.from_arrays(
        {
            "products": known,
            "product": product,
            "trade_time_ns": table["trade_time_ns"].to_numpy(),
            "price": table["price"].to_numpy(),
            "size": table["size"].to_numpy(),
            # The exchange reports the maker's side: the taker of a sell order bought.
            "buy": _equal(table["side"], "SELL").to_numpy(),
            "trade_id": table["trade_id"].cast(pa.int64()).to_numpy(),
            "is_snapshot": _equal(table["event_type"], "snapshot").to_numpy(),
        }
    )


def _codes(
    column: pa.ChunkedArray, words: tuple[str, ...] | None
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Encode strings as indices into `words`, or into their distinct values in order of appearance."""
    known = words if words is not None else tuple(column.unique().to_pylist())
    indices = _call("index_in", column, options=pc.SetLookupOptions(pa.array(known, pa.string())))
    return indices.to_numpy().astype(np.int32), known


def _equal(column: pa.ChunkedArray, word: str) -> pa.ChunkedArray:
    return _call("equal", column, pa.scalar(word))


def _call(function: str, *arguments: Any, options: Any = None) -> Any:
    """Call a compute kernel by name; pyarrow defines its functions where no type checker sees them."""
    return pc.call_function(function, list(arguments), options)
