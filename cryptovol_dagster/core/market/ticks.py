"""Ticks and trades as columns: the boundary between messages of the feed and events of the market.

Belongs here: the columnar form, its lake form, and the cleaning that every path (hourly asset, replay,
live) shares. Does not belong here: reading files, parsing JSON, or anything that knows of bars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ingestor.errors import CryptovolError

#: dtype of each column of `TickColumns`, in order.
TICK_DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
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
    }.items()
}
#: dtype of each array column of `TradeColumns`, in order; `trade_id` is compared, never computed with.
TRADE_DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "product": np.int32,
        "trade_time_ns": np.int64,
        "price": np.float64,
        "size": np.float64,
        "buy": np.bool_,
        "trade_id": np.int64,
        "is_snapshot": np.bool_,
    }.items()
}
UNKNOWN_SEQUENCE = -1


class ColumnsError(CryptovolError, ValueError):
    """Columns are missing, of unequal length, or point outside their dictionary."""


class _Columns:
    """Shared behaviour of frozen dataclasses whose array fields are equally long."""

    _DTYPES: Mapping[str, np.dtype[Any]]
    #: index column → (field of its dictionary, name of the string column in the lake)
    _DICTIONARIES: Mapping[str, tuple[str, str]]

    def __len__(self) -> int:
        return len(getattr(self, next(iter(self._DTYPES))))

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in self._DTYPES}
        if len(set(lengths.values())) > 1:
            raise ColumnsError(f"columns differ in length: {lengths}")
        for index, (dictionary, _) in self._DICTIONARIES.items():
            codes, size = getattr(self, index), len(getattr(self, dictionary))
            if len(codes) and not (codes.min() >= 0 and codes.max() < size):
                raise ColumnsError(f"column {index!r} points outside its {size} {dictionary}")

    def take(self, rows: NDArray[Any] | slice) -> Self:
        """Return the given rows (indices, mask or slice), in that order."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return type(self)(**columns | {name: columns[name][rows] for name in self._DTYPES})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """Build from a mapping of arrays; other keys (such as counters) are ignored.

        Args:
            arrays: every field by name; dictionaries as sequences of strings.

        Raises:
            ColumnsError: a column is missing, of another length, or points outside its dictionary.
        """
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        missing = [name for name in names if name not in arrays]
        if missing:
            raise ColumnsError(f"columns are missing: {', '.join(missing)}")
        return cls(
            **{
                name: np.ascontiguousarray(arrays[name], dtype=cls._DTYPES[name])
                if name in cls._DTYPES
                else tuple(arrays[name])
                for name in names
            }
        )

    @classmethod
    def empty(cls, products: Sequence[str] = ()) -> Self:
        """Return columns without rows, for the given products."""
        arrays: dict[str, Any] = {name: np.empty(0, dtype) for name, dtype in cls._DTYPES.items()}
        arrays |= {dictionary: () for dictionary, _ in cls._DICTIONARIES.values()}
        return cls.from_arrays(arrays | {"products": tuple(products)})

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Join all rows of `parts`, in order; dictionaries are united in order of first appearance.

        Raises:
            ColumnsError: `parts` is empty.
        """
        if not parts:
            raise ColumnsError("nothing to concatenate")
        if len(parts) == 1:
            return parts[0]
        united: dict[str, Any] = {}
        for name in cls._DTYPES:
            columns = [getattr(part, name) for part in parts]
            if name in cls._DICTIONARIES:
                dictionary = cls._DICTIONARIES[name][0]
                words = tuple(dict.fromkeys(word for part in parts for word in getattr(part, dictionary)))
                place = {word: code for code, word in enumerate(words)}
                columns = [
                    column
                    if (own := getattr(part, dictionary)) == words[: len(own)]
                    else np.array([place[word] for word in own], dtype=np.int32)[column]
                    for part, column in zip(parts, columns, strict=True)
                ]
                united[dictionary] = words
            united[name] = np.concatenate(columns)
        return cls(**united)

    def to_table(self) -> pa.Table:
        """Return the long form for the lake: one row per tick, index columns as dictionary-encoded text."""
        columns: dict[str, pa.Array | pa.ChunkedArray] = {}
        for name in self._DTYPES:
            values = getattr(self, name)
            if name in self._DICTIONARIES:
                dictionary, word = self._DICTIONARIES[name]
                words = pa.array(getattr(self, dictionary), type=pa.string())
                columns[word] = pa.DictionaryArray.from_arrays(pa.array(values), words)
            else:
                columns[name] = pa.array(values)
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table, *, products: Sequence[str] | None = None) -> Self:
        """Build from the form of `to_table`, row for row.

        Args:
            table: also one joined from several partitions (their dictionaries are united).
            products: the dictionary of products to use, so that hours in which a product was silent still
                list it; by default the table's own.

        Raises:
            ColumnsError: a column is missing, or a row is of a product that `products` does not list.
        """
        arrays: dict[str, Any] = {}
        for name, dtype in cls._DTYPES.items():
            column = cls._DICTIONARIES[name][1] if name in cls._DICTIONARIES else name
            if column not in table.column_names:
                raise ColumnsError(f"column {column!r} is missing")
            values = table.column(column)
            if name not in cls._DICTIONARIES:
                arrays[name] = np.ascontiguousarray(values.to_numpy(), dtype=dtype)
                continue
            encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
            whole = encoded.unify_dictionaries().combine_chunks()
            whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
            words: tuple[str, ...] = tuple(whole.dictionary.to_pylist())
            codes = whole.indices.to_numpy(zero_copy_only=False).astype(np.int32)
            if name == "product" and products is not None:
                used = {words[code] for code in np.unique(codes)}
                if strangers := sorted(used - set(products)):
                    raise ColumnsError(f"rows of products that were not requested: {', '.join(strangers)}")
                place = np.array([products.index(w) if w in products else -1 for w in words], dtype=np.int32)
                codes, words = (place[codes] if len(codes) else codes), tuple(products)
            arrays[name], arrays[cls._DICTIONARIES[name][0]] = codes, words
        return cls.from_arrays(arrays)


@dataclass(frozen=True, eq=False)
class TickColumns(_Columns):
    """Ticker entries as equally long columns, in offset order unless said otherwise.

    Attributes:
        products: product ids, indexed by `product`.
        product: index into `products` (int32).
        connections: connection ids, indexed by `connection`.
        connection: index into `connections` (int32).
        event_time_ns: the exchange's time, UTC nanoseconds (int64).
        sequence_num: of the frame within its connection (int64); −1 unknown.
        event_index: of the event within its frame (int16).
        entry_index: of the entry within its event (int16).
        bid: best bid (float64); NaN absent.
        ask: best ask (float64); NaN absent.
        bid_size: quantity at the best bid (float64); NaN absent.
        ask_size: quantity at the best ask (float64); NaN absent.
        price: last trade (float64); NaN absent.
        gap_before: messages were lost between the product's previous entry and this one (bool).

    Examples:
        >>> TickColumns.empty(["BTC-USD"]).products
        ('BTC-USD',)
        >>> len(TickColumns.empty(["BTC-USD"]))
        0
    """

    products: tuple[str, ...]
    product: NDArray[np.int32]
    connections: tuple[str, ...]
    connection: NDArray[np.int32]
    event_time_ns: NDArray[np.int64]
    sequence_num: NDArray[np.int64]
    event_index: NDArray[np.int16]
    entry_index: NDArray[np.int16]
    bid: NDArray[np.float64]
    ask: NDArray[np.float64]
    bid_size: NDArray[np.float64]
    ask_size: NDArray[np.float64]
    price: NDArray[np.float64]
    gap_before: NDArray[np.bool_]

    _DTYPES = TICK_DTYPES
    _DICTIONARIES = {"product": ("products", "product_id"), "connection": ("connections", "connection_id")}  # noqa: RUF012 - a constant, not a field


@dataclass(frozen=True, eq=False)
class TradeColumns(_Columns):
    """Trades as equally long columns.

    Attributes:
        products: product ids, indexed by `product`.
        product: index into `products` (int32).
        trade_time_ns: the trade's own time, UTC nanoseconds (int64).
        price: in quote currency (float64).
        size: in base currency (float64).
        buy: the taker bought (bool).
        trade_id: the exchange's id, unique within a product (int64).
        is_snapshot: the trade came in a snapshot, which is history (bool).

    Examples:
        >>> from cryptovol_dagster.core.market.synthetic import synthetic_ticks
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> _, trades = synthetic_ticks(SPEC, 10)
        >>> trades.take(trades.buy).to_table().column_names[:4]
        ['product_id', 'trade_time_ns', 'price', 'size']
    """

    products: tuple[str, ...]
    product: NDArray[np.int32]
    trade_time_ns: NDArray[np.int64]
    price: NDArray[np.float64]
    size: NDArray[np.float64]
    buy: NDArray[np.bool_]
    trade_id: NDArray[np.int64]
    is_snapshot: NDArray[np.bool_]

    _DTYPES = TRADE_DTYPES
    _DICTIONARIES = {"product": ("products", "product_id")}  # noqa: RUF012 - a constant, not a field
