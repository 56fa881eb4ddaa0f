"""A day's candles from stored data: the imported history and the feed's trades.

Belongs here: reading both, and counting candles by source. Does not belong here: how trades become candles
and how the two are joined (`core/market/candle_rollup.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cryptovol_dagster.core.market.candle_checks import MINUTE_NS
from cryptovol_dagster.core.market.candle_rollup import (
    FEED,
    HISTORY,
    Overlap,
    RolledUp,
    compare_overlap,
    join_candles,
    roll_up,
)
from cryptovol_dagster.core.market.ticks import TradeColumns
from cryptovol_dagster.core.times import HOUR_NS, hour_keys
from cryptovol_dagster.history.store import History
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.market import TRADES


@dataclass(frozen=True)
class SpanCandles:
    """The candles of a span of time.

    Attributes:
        candles: the columns of `core.market.candle_rollup.CANDLES`.
        overlap: how the two sources compare.
        incomplete: minutes of the feed left out because some of their trades are missing.
        minutes: of the span.
        products: the requested products.
    """

    candles: pd.DataFrame
    overlap: Overlap
    incomplete: int
    minutes: int
    products: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return the numbers stored beside the table, JSON-able."""
        product_of, source_of = self.candles["product"], self.candles["source"]
        return {
            "minutes": self.minutes,
            "products": {
                product: {
                    source: int(((product_of == product) & (source_of == source)).sum())
                    for source in (HISTORY, FEED)
                }
                for product in self.products
            },
            "incomplete": self.incomplete,
            "overlap": {
                "compared": self.overlap.compared,
                "agreeing": self.overlap.agreeing,
                "worst": [str(difference) for difference in self.overlap.worst],
            },
        }


def read_candles(
    lake: Lake, history: History, products: Sequence[str], start_ns: int, end_ns: int
) -> SpanCandles:
    """Join the history with the candles of the feed's trades in ``[start_ns, end_ns)``.

    Trades of the hours around the span are read as well, where there are any: they show whether the minutes
    at its ends are complete.

    Raises:
        LakeError: trades cannot be read.
        HistoryError: the history cannot be read.
    """
    imported = history.read_products(products, start_ns, end_ns)
    fed = _rolled_up(lake, start_ns, end_ns)
    feed = fed.candles.loc[fed.candles["product"].isin(products)]
    return SpanCandles(
        candles=join_candles(imported, feed, products),
        overlap=compare_overlap(imported, feed),
        incomplete=fed.incomplete,
        minutes=(end_ns - start_ns) // MINUTE_NS,
        products=tuple(products),
    )


def _rolled_up(lake: Lake, start_ns: int, end_ns: int) -> RolledUp:
    around = (start_ns - HOUR_NS, end_ns + HOUR_NS)
    if not any(lake.exists(TRADES, key) for key in hour_keys(*around)):
        return roll_up(TradeColumns.empty(), start_ns, end_ns)
    return roll_up(TradeColumns.from_table(lake.read_table(TRADES, *around)), start_ns, end_ns)
