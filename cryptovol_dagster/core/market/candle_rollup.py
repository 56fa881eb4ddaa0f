"""Minute candles from the feed's own trades, and one table of them with the exchange's.

Belongs here: how trades become a candle, for which minutes the feed is complete, how the two sources are
joined and compared. Does not belong here: reading either source, and what a candle means as a bar
(`candle_bars.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cryptovol_dagster.core.market.candle_checks import MINUTE_NS, NUMBERS, same_values
from cryptovol_dagster.core.market.ticks import TradeColumns
from cryptovol_dagster.core.times import iso_utc

#: `source` of a candle: the exchange's own, or rolled up from the feed's trades.
HISTORY, FEED = "history", "feed"
#: The table of candles of both sources; `n_trades` and `signed_volume` are null where unknown.
CANDLES = pa.schema(
    [
        ("product", pa.dictionary(pa.int8(), pa.string())),
        ("bar_start", pa.timestamp("ns", "UTC")),
        *((name, pa.float64()) for name in NUMBERS),
        ("n_trades", pa.int64()),
        ("signed_volume", pa.float64()),
        ("source", pa.dictionary(pa.int8(), pa.string())),
    ]
)
#: Increased when the same trades or candles give other rows than before.
ROLLUP_VERSION = 1


@dataclass(frozen=True)
class RolledUp:
    """Candles computed from trades.

    Attributes:
        candles: `product`, `start_ns`, open, high, low, close, volume, `n_trades`, `signed_volume`; one row
            for each minute that has trades and is complete, ordered by product and time.
        incomplete: number of minutes left out because some of their trades are missing.
    """

    candles: pd.DataFrame
    incomplete: int


@dataclass(frozen=True)
class Difference:
    """A column in which two candles of the same minute differ.

    Attributes:
        product: name of the product.
        start_ns: start of the minute.
        column: name of the column.
        history: the exchange's value.
        feed: the value of the feed's trades.
    """

    product: str
    start_ns: int
    column: str
    history: float
    feed: float

    @property
    def relative(self) -> float:
        """Difference as a share of the exchange's value."""
        return abs(self.feed - self.history) / max(abs(self.history), 1e-12)

    def __str__(self) -> str:
        return (
            f"{self.product} {iso_utc(self.start_ns)}: {self.column} {self.history:.10g} in the history, "
            f"{self.feed:.10g} from trades"
        )


@dataclass(frozen=True)
class Overlap:
    """Comparison of the candles of both sources.

    Attributes:
        compared: minutes that both have.
        agreeing: of those, the ones with equal prices and volume.
        worst: the largest relative difference of each minute that differs, the largest first.
    """

    compared: int
    agreeing: int
    worst: tuple[Difference, ...]


def roll_up(
    trades: TradeColumns,
    start_ns: int,
    end_ns: int,
    *,
    interval_ns: int = MINUTE_NS,
    no_more_follow: bool = False,
) -> RolledUp:
    """Compute the exchange's candles from its trades.

    A candle covers ``[open, close)`` by the trades' own times: the first and last price in order of (time,
    trade id), the extremes, the summed sizes. Without a trade there is none. The exchange counts a product's
    trades one by one, so a jump of the ids between two trades means that some are missing. A minute that such
    a jump touches is left out, and so is the one in which the trades begin. The minute in which they end is
    kept only at the end of the span, because elsewhere more trades may have followed in it.

    Args:
        trades: each once, in any order; those around the span serve to find jumps at its ends.
        start_ns: first minute.
        end_ns: end of the last one.
        interval_ns: length of a candle.
        no_more_follow: every trade before `end_ns` is among them, so the minute in which they end is whole.

    Examples:
        >>> from cryptovol_dagster.core.market.synthetic import START_NS, synthetic_ticks
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> _, trades = synthetic_ticks(SPEC, 36, products=("BTC-USD",))
        >>> rolled = roll_up(trades, START_NS, START_NS + 3 * MINUTE_NS)
        >>> rolled.candles["n_trades"].tolist(), rolled.incomplete
        ([10, 11], 1)
    """
    order = np.lexsort((trades.trade_id, trades.trade_time_ns, trades.product))
    product, times = trades.product[order], trades.trade_time_ns[order]
    minute = times // interval_ns * interval_ns
    first = _changes(product, minute)
    heads = np.flatnonzero(first)
    group = np.cumsum(first) - 1
    if not heads.size:
        return RolledUp(_empty(trades.products), 0)
    tails = np.append(heads[1:], len(order)) - 1
    complete = _complete(
        product,
        trades.trade_id[order],
        minute,
        group,
        heads.size,
        None if no_more_follow else end_ns - interval_ns,
    )
    price, size = trades.price[order], trades.size[order]
    signed = np.where(trades.buy[order], size, -size)
    candles = pd.DataFrame(
        {
            "product": pd.Categorical.from_codes(product[heads], categories=list(trades.products)),
            "start_ns": minute[heads],
            "open": price[heads],
            "high": np.maximum.reduceat(price, heads),
            "low": np.minimum.reduceat(price, heads),
            "close": price[tails],
            "volume": np.add.reduceat(size, heads),
            "n_trades": tails - heads + 1,
            "signed_volume": np.add.reduceat(signed, heads),
        }
    )
    inside = (minute[heads] >= start_ns) & (minute[heads] < end_ns)
    return RolledUp(candles.loc[inside & complete].reset_index(drop=True), int((inside & ~complete).sum()))


def _complete(
    product: NDArray[np.int32],
    trade_id: NDArray[np.int64],
    minute: NDArray[np.int64],
    group: NDArray[np.int64],
    n_groups: int,
    last_minute_ns: int | None,
) -> NDArray[np.bool_]:
    """Return which groups of trades (product, minute) are complete."""
    same = product[1:] == product[:-1]
    jump = same & (np.diff(trade_id) != 1)
    complete = np.ones(n_groups, dtype=bool)
    complete[group[1:][jump]] = False
    complete[group[:-1][jump]] = False
    begins = np.concatenate([[True], ~same])
    ends = np.concatenate([~same, [True]])
    complete[group[begins]] = False
    if last_minute_ns is not None:
        complete[group[ends & (minute != last_minute_ns)]] = False
    return complete


def _changes(*keys: NDArray) -> NDArray[np.bool_]:
    """Return at which rows any key differs from the row before; the first row always."""
    changed = np.zeros(len(keys[0]), dtype=bool)
    changed[:1] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return changed


def _empty(products: Sequence[str]) -> pd.DataFrame:
    floats = {name: np.empty(0, np.float64) for name in NUMBERS}
    return pd.DataFrame(
        {
            "product": pd.Categorical([], categories=list(products)),
            "start_ns": np.empty(0, np.int64),
            **floats,
            "n_trades": np.empty(0, np.int64),
            "signed_volume": np.empty(0, np.float64),
        }
    )


def join_candles(history: pd.DataFrame, feed: pd.DataFrame, products: Sequence[str]) -> pd.DataFrame:
    """Join both sources to one table: the exchange's candle where there is one, the feed's elsewhere.

    Number and signed volume of the trades are added where the feed has them, else they are null. A minute
    without a candle has no row.

    Args:
        history: `product`, `start_ns` and the five numbers of the exchange's candles.
        feed: `RolledUp.candles`.
        products: whose rows are wanted, in this order.

    Returns:
        `CANDLES`' columns, ordered by product and time.
    """
    keys = ["product", "start_ns"]
    ours = history.loc[:, [*keys, *NUMBERS]].astype({"product": object})
    theirs = feed.astype({"product": object})
    both = ours.merge(theirs, on=keys, how="outer", suffixes=("", "_feed"))
    from_history = both["close"].notna().to_numpy(bool)
    joined = pd.DataFrame(
        {
            "product": pd.Categorical(both["product"], categories=list(products)),
            "bar_start": pd.to_datetime(both["start_ns"], unit="ns", utc=True),
            **{
                name: np.where(from_history, both[name], both[f"{name}_feed"]).astype(float)
                for name in NUMBERS
            },
            "n_trades": both["n_trades"].astype("Int64"),
            "signed_volume": both["signed_volume"].astype(np.float64),
            "source": pd.Categorical.from_codes(
                np.where(from_history, 0, 1).astype(np.int8), categories=[HISTORY, FEED]
            ),
        }
    )
    joined = joined.loc[joined["product"].notna(), CANDLES.names]
    return joined.sort_values(["product", "bar_start"], kind="stable").reset_index(drop=True)


def compare_overlap(history: pd.DataFrame, feed: pd.DataFrame, shown: int = 5) -> Overlap:
    """Compare the minutes that both sources have.

    Args:
        history: `product`, `start_ns` and the five numbers of the exchange's candles.
        feed: `RolledUp.candles`.
        shown: greatest number of differing minutes to return.

    Examples:
        >>> columns = {"open": 100.0, "high": 101.0, "low": 99.5, "close": 100.5, "volume": 2.0}
        >>> history = pd.DataFrame({"product": "BTC-USD", "start_ns": [0], **columns})
        >>> overlap = compare_overlap(history, history.assign(close=101.0))
        >>> overlap.compared, overlap.agreeing, str(overlap.worst[0])
        (1, 0, 'BTC-USD 1970-01-01T00:00:00Z: close 100.5 in the history, 101 from trades')
    """
    keys = ["product", "start_ns"]
    both = history.astype({"product": object}).merge(
        feed.astype({"product": object}), on=keys, suffixes=("_history", "_feed")
    )
    relative = {}
    agrees = np.ones(len(both), dtype=bool)
    for name in NUMBERS:
        theirs, ours = (both[f"{name}_{side}"].to_numpy(np.float64) for side in ("history", "feed"))
        relative[name] = np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-12)
        agrees &= same_values(name, ours, theirs)
    differing = np.flatnonzero(~agrees)
    size = np.array([relative[name][differing] for name in NUMBERS])
    order = np.argsort(-size.max(axis=0, initial=0.0), kind="stable")[:shown]
    worst = []
    for at in order:
        row, name = both.iloc[differing[at]], NUMBERS[int(size[:, at].argmax())]
        worst.append(
            Difference(
                str(row["product"]), int(row["start_ns"]), name, row[f"{name}_history"], row[f"{name}_feed"]
            )
        )
    return Overlap(compared=len(both), agreeing=int(agrees.sum()), worst=tuple(worst))
