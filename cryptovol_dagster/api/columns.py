"""Columns of the API's tables: each with its unit, and its computation from stored columns.

Belongs here: names and units for people. Does not belong here: reading files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cryptovol_dagster.api.errors import ApiError
from cryptovol_dagster.core.features.catalogue import feature_list, features_version
from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.learning.labels import REASONS, label_hash
from cryptovol_dagster.core.market.fixed_point import NANO, SIZE_SCALE
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.units import BPS
from ingestor.errors import did_you_mean

#: Kinds of rows in the lake, in the order of their computation.
TICKS, TRADES, BARS, FEATURES, LABELS = "ticks", "trades", "bars", "features", "labels"
#: Kinds that are computed on request.
SCORES, COVERAGE, GAPS = "scores", "coverage", "gaps"
KINDS = (TICKS, TRADES, BARS, FEATURES, LABELS, SCORES, COVERAGE, GAPS)
PRODUCT = "product"
QUOTE, BASE, SHARE = "quote currency", "base currency", "share, 0 to 1"

_Make = Callable[[pa.Table], Any]


@dataclass(frozen=True)
class Column:
    """A column that people read.

    Attributes:
        name: its name.
        unit: of the value; empty for words and flags.
        text: its meaning.
        sources: stored columns it is computed from.
        make: computes it from a table of those; None where the one stored column is used unchanged.
    """

    name: str
    unit: str
    text: str
    sources: tuple[str, ...] = ()
    make: _Make | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of rows.

    Attributes:
        name: one of `KINDS`.
        index: name of the time of a row, in UTC.
        columns: all but time and product.
        time: stored column of the time, where rows are stored.
        product: stored column of the product.
        known: stored column, and its values in rows of which something is known.
        version: version of the rows' meaning in this build; None where files have no version.
        reference_set: products whose means the cross features are; empty where there are none.
    """

    name: str
    index: str
    columns: tuple[Column, ...]
    time: str = "bar_start"
    product: str = PRODUCT
    known: tuple[str, tuple[Any, ...]] | None = None
    version: str | None = None
    reference_set: tuple[str, ...] = ()

    def select(self, names: list[str] | None) -> tuple[Column, ...]:
        """Return the columns of these names, in that order; all without names.

        Raises:
            ApiError: there is no such column.
        """
        if names is None:
            return self.columns
        known = {column.name: column for column in self.columns}
        self.require(names, known)
        return tuple(known[name] for name in dict.fromkeys(names) if name in known)

    def require(self, names: Collection[str], known: Collection[str]) -> None:
        """Check that columns exist.

        Raises:
            ApiError: one does not.
        """
        for name in names:
            if name not in known and name not in (self.index, PRODUCT):
                raise ApiError(
                    f'{self.name} have no column {name!r}: market.describe("{self.name}") lists them.'
                    + did_you_mean(name, known)
                )

    def pick(self, table: pa.Table, names: Collection[str]) -> pa.Table:
        """Return these columns of a table of this kind, in that order, after time and product.

        Raises:
            ApiError: the table has no such column.
        """
        self.require(names, table.column_names)
        keys = [name for name in (self.index, PRODUCT) if name in table.column_names]
        return table.select(dict.fromkeys([*keys, *names]))

    def describe(self) -> pd.DataFrame:
        """Return a row a column: `unit`, `meaning`."""
        return pd.DataFrame(
            {
                "unit": [column.unit for column in self.columns],
                "meaning": [column.text for column in self.columns],
            },
            index=pd.Index([column.name for column in self.columns], name="column"),
        )


def _call(function: str, *arguments: Any) -> Any:
    """Call a compute kernel by name; pyarrow defines its functions where no type checker sees them."""
    return pc.call_function(function, list(arguments))


def _over(source: str, divisor: float) -> _Make:
    """Return a maker of a fixed-point column as a number.

    A division returns the double nearest to the decimals; a product may not.
    """
    return lambda table: _call("divide", table[source].cast(pa.float64()), pa.scalar(divisor))


def _bps(source: str) -> _Make:
    return lambda table: _call("multiply", table[source], pa.scalar(BPS))


def _words(source: str, words: list[str]) -> _Make:
    """Return a maker of a dictionary column: the stored codes are its indices."""

    def make(table: pa.Table) -> pa.DictionaryArray:
        codes = table[source].combine_chunks()
        return pa.DictionaryArray.from_arrays(codes, pa.array(words, pa.string()))

    return make


def _mid(table: pa.Table) -> Any:
    return _call("multiply", _call("add", table["bid"], table["ask"]), pa.scalar(0.5))


def _spread_bps(table: pa.Table) -> Any:
    spread = _call("subtract", table["ask"], table["bid"])
    return _call("multiply", _call("divide", spread, _mid(table)), pa.scalar(BPS))


def _sequence(table: pa.Table) -> Any:
    numbers = table["sequence_num"]
    return _call("if_else", _call("less", numbers, pa.scalar(0)), pa.scalar(None, pa.int64()), numbers)


def _side(table: pa.Table) -> Any:
    return _call("if_else", table["buy"], pa.scalar("buy"), pa.scalar("sell"))


_TICKS = Kind(
    TICKS,
    "time",
    (
        Column("bid", QUOTE, "best bid", ("bid",)),
        Column("ask", QUOTE, "best ask", ("ask",)),
        Column("mid", QUOTE, "(bid + ask) / 2", ("bid", "ask"), _mid),
        Column("spread_bps", "bps", "(ask − bid) / mid", ("bid", "ask"), _spread_bps),
        Column("bid_size", BASE, "quantity at the best bid", ("bid_size",)),
        Column("ask_size", BASE, "quantity at the best ask", ("ask_size",)),
        Column("last", QUOTE, "price of the last trade", ("price",)),
        Column("gap_before", "", "messages were lost since the product's previous tick", ("gap_before",)),
        Column("connection_id", "", "the recorder's connection", ("connection_id",)),
        Column(
            "sequence", "", "number of the frame in its connection; null: none", ("sequence_num",), _sequence
        ),
    ),
    time="event_time_ns",
    product="product_id",
)  # fmt: skip
_TRADES = Kind(
    TRADES,
    "time",
    (
        Column("price", QUOTE, "price of the trade", ("price",)),
        Column("size", BASE, "quantity traded", ("size",)),
        Column("side", "", "buy or sell, of the taker", ("buy",), _side),
        Column("trade_id", "", "the exchange's number", ("trade_id",)),
        Column("is_snapshot", "", "part of a snapshot, which is history", ("is_snapshot",)),
    ),
    time="trade_time_ns",
    product="product_id",
)
_BARS = Kind(
    BARS,
    "bar_start",
    (
        Column("open", QUOTE, "mid at the bar's start; of minutes the first trade's price", ("open",)),
        Column("high", QUOTE, "highest of the bar", ("high",)),
        Column("low", QUOTE, "lowest of the bar", ("low",)),
        Column("close", QUOTE, "mid at the bar's end; of minutes the last trade's price", ("close",)),
        Column("volume", BASE, "quantity traded", ("volume_e8",), _over("volume_e8", SIZE_SCALE)),
        Column(
            "signed_volume", BASE, "bought minus sold by takers",
            ("signed_volume_e8",), _over("signed_volume_e8", SIZE_SCALE),
        ),
        Column("trades", "count", "trades", ("n_trades",)),
        Column(
            "log_return", "log return", "ln(close / close before); null across a break",
            ("ret_nano",), _over("ret_nano", NANO),
        ),
        Column("range_bps", "bps", "ln(high / low)", ("range_nano",), _over("range_nano", NANO / BPS)),
        Column(
            "garman_klass", "squared log return", "Garman–Klass variance of the bar",
            ("gk_atto",), _over("gk_atto", NANO**2),
        ),
        Column(
            "spread_bps", "bps", "(ask − bid) / mid at the bar's end",
            ("spread_nano",), _over("spread_nano", NANO / BPS),
        ),
        Column(
            "imbalance", "share, −1 to 1", "(bid size − ask size) / their sum, at the bar's end",
            ("imbalance_nano",), _over("imbalance_nano", NANO),
        ),
        Column(
            "microprice_bps", "bps", "(microprice − mid) / mid at the bar's end",
            ("microprice_nano",), _over("microprice_nano", NANO / BPS),
        ),
        Column("updates", "count", "quote updates", ("n_updates",)),
        Column(
            "mid_changes", "count", "updates that changed the mid",
            ("n_mid_changes",),
        ),
        Column("age_s", "s", "age of the quote at the bar's end", ("age_s",)),
        Column("stale", "", "the quote is too old to predict from", ("stale",)),
        Column("in_gap", "", "no message for longer than the gap limit", ("in_gap",)),
        Column("new_segment", "", "first bar after a break; no return crosses it", ("new_segment",)),
        Column("lossy", "", "messages were lost in it or around it", ("lossy",)),
        Column("out_of_bounds", "", "moved more than 5 %; left out of all sums", ("out_of_bounds",)),
    ),
    known=("in_gap", (False,)),
)  # fmt: skip
_SCORES = Kind(
    SCORES,
    "bar_start",
    (
        Column("probability", SHARE, "that the next H bars are a spike; null: no prediction"),
        Column("flag", "", "probability at or over the operating point; null: no prediction, or no point"),
        Column("reason", "", "ok, or why there is no prediction"),
    ),
)
COVERAGE_KIND = Kind(
    COVERAGE,
    "start",
    (
        Column("recorded", SHARE, "bars that are not in a gap; 0 where nothing is stored"),
        Column("messages", "count", "quote updates"),
        Column("trades", "count", "trades; null where the feed reported none"),
        Column("stale", SHARE, "bars whose quote is too old for a prediction"),
        Column("lossy", SHARE, "bars in or around which messages were lost"),
        Column("features", SHARE, "rows of features that may be scored; null: no features stored"),
        Column("labels", SHARE, "rows with a label; null: no labels stored"),
    ),
)
_GAPS = Kind(
    GAPS,
    "start",
    (
        Column("end", "UTC", "event time of the first thing known after the loss"),
        Column("seconds", "s", "end minus start"),
        Column("kind", "", "sequence, in_flight, between or offsets (docs/concepts: How nothing is lost)"),
        Column("lost", "count", "sequence numbers or offsets lost; null: unknown"),
        Column("connection_id", "", "the connection; empty where the broker lost offsets"),
        Column("from_sequence", "", "first number lost"),
        Column("to_sequence", "", "last number lost"),
        Column("detail", "", "further facts, JSON"),
    ),
)
_FIXED = {kind.name: kind for kind in (_TICKS, _TRADES, _BARS, _SCORES, COVERAGE_KIND, _GAPS)}


@lru_cache(maxsize=32)
def kind_of(name: str, spec: TimescaleSpec) -> Kind:
    """Return a kind of rows of a chain.

    Raises:
        ApiError: there is none of that name.
    """
    if name == FEATURES:
        return _features(spec)
    if name == LABELS:
        return _labels(spec)
    if name not in _FIXED:
        raise ApiError(f"{name!r} is not a kind of rows: {', '.join(KINDS)}.{did_you_mean(name, KINDS)}")
    return _FIXED[name]


def _features(spec: TimescaleSpec) -> Kind:
    own = tuple(
        Column(feature.name, feature.unit, feature.formula, (feature.name,)) for feature in feature_list(spec)
    )
    words = [reason.name.lower() for reason in Reason]
    flags = (
        Column("valid", "", "the row may be scored", ("valid",)),
        Column("reason", "", "ok, or why it may not be scored", ("reason",), _words("reason", words)),
    )
    known = ("reason", tuple(reason.value for reason in Reason if reason is not Reason.IN_GAP))
    version, chosen = features_version(spec), spec.reference_set
    return Kind(FEATURES, "bar_start", (*own, *flags), known=known, version=version, reference_set=chosen)


def _labels(spec: TimescaleSpec) -> Kind:
    ahead = f"volatility of the next {spec.horizon_bars} bars, per bar; null: no label"
    behind = f"the same over the {spec.horizon_bars} bars up to this one"
    reason = _words("reason", [REASONS[code] for code in sorted(REASONS)])
    columns = (
        Column("volatility_bps", "bps", ahead, ("sigma",), _bps("sigma")),
        Column("trailing_volatility_bps", "bps", behind, ("trailing_sigma",), _bps("trailing_sigma")),
        Column("reason", "", "ok, or why there is no label", ("reason",), reason),
    )
    return Kind(LABELS, "bar_start", columns, known=("reason", (0,)), version=label_hash(spec))
