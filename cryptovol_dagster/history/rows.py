"""Files of minute candles → the labelled rows of a span, without a lake, for a backtest.

Belongs here: reading candles of several products and joining them into rows in pieces, as the chain does by
partition, so that months of them fit into memory. Does not belong here: what a candle, a feature or a label
is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cryptovol_dagster.core.features.catalogue import lookback_bars
from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.learning.dataset import Dataset, concatenate, join_rows, no_rows
from cryptovol_dagster.core.learning.labels import forward_volatility
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.market.candle_bars import CANDLE_COLUMNS, candle_bars
from cryptovol_dagster.core.market.candle_checks import CandleError, check_candles
from cryptovol_dagster.core.specs import DAY_S, NS, TimescaleSpec
from cryptovol_dagster.history.imports import read_table
from cryptovol_dagster.history.store import History

#: Features are computed and joined so many days at a time.
_PIECE_NS = 15 * DAY_S * NS


def read_candle_files(paths: Sequence[Path], *, to_ns: int, now_ns: int) -> pd.DataFrame:
    """Read candles of files, or of all Parquet and CSV files below a folder, checked as an import is.

    Args:
        paths: files and folders.
        to_ns: candles that begin then or later are left out.
        now_ns: the present.

    Returns:
        The columns of `CANDLE_COLUMNS`.

    Raises:
        CandleError: a file has none, or candles that an import refuses.
    """
    files = [file for path in paths for file in _files_of(path)]
    frames = [check_candles(read_table(file), str(file), now_ns=now_ns).candles for file in files]
    return _as_candles(pd.concat(frames, ignore_index=True), to_ns)


def read_history(history: History, products: Sequence[str], *, to_ns: int) -> pd.DataFrame:
    """Read the imported candles of products up to a time; the columns of `CANDLE_COLUMNS`.

    Raises:
        HistoryError: a file cannot be read.
        CandleError: there are none.
    """
    spans = [span for product in products if (span := history.span(product)) is not None]
    if not spans:
        raise CandleError(
            f"{history.root} has no candles of {', '.join(products)}: import some with "
            "`cryptovol import-bars`, or name files with --bars"
        )
    start_ns = min(span[0] for span in spans)
    return _as_candles(history.read_products(products, start_ns, to_ns), to_ns)


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for pattern in ("*.parquet", "*.csv", "*.csv.gz") for file in path.rglob(pattern))
    if not files:
        raise CandleError(f"{path}: no Parquet or CSV files there")
    return files


def _as_candles(found: pd.DataFrame, to_ns: int) -> pd.DataFrame:
    candles = found.loc[found["start_ns"] < to_ns]
    if candles.empty:
        raise CandleError("no candle within the requested span")
    starts = pd.to_datetime(candles["start_ns"], unit="ns", utc=True)
    return candles.assign(bar_start=starts).reindex(columns=list(CANDLE_COLUMNS))


def candle_grid(candles: pd.DataFrame, spec: TimescaleSpec, *, end_ns: int | None = None) -> BarGrid:
    """Build bars from candles, from the start of their first partition to the end of their last.

    Args:
        candles: columns of `CANDLE_COLUMNS`.
        spec: bar and partition length, stale and gap limits.
        end_ns: end of the bars; default: of the partition of the last candle.
    """
    starts = candles["bar_start"].astype(np.int64)
    length = spec.partition_ns
    first = int(starts.min()) // length * length
    end = -(-(int(starts.max()) + spec.bar_ns) // length) * length if end_ns is None else end_ns
    products = sorted(map(str, pd.unique(candles["product"])))
    return candle_bars(candles, products, start_ns=first, end_ns=end, spec=spec)


def labelled_rows(bars: BarGrid, spec: TimescaleSpec, products: Sequence[str]) -> Dataset:
    """Compute features and labels of bars, and join them, a piece of the span at a time.

    Features are computed from all products of the bars; the rows returned are those of `products`.

    Raises:
        LearningError: no row has both features and a label.
    """
    parts = list(_pieces(bars, spec, products))
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part.dropped)
    filled = [part for part in parts if len(part)]
    if not filled:
        raise no_rows(dict(dropped))
    return concatenate(filled, dict(sorted(dropped.items())))


def _pieces(bars: BarGrid, spec: TimescaleSpec, products: Sequence[str]) -> Iterator[Dataset]:
    back_ns, ahead_ns = lookback_bars(spec) * spec.bar_ns, spec.horizon_ns
    behind_ns = max(back_ns, ahead_ns)
    for start in range(bars.start_ns, bars.end_ns, _PIECE_NS):
        stop = min(start + _PIECE_NS, bars.end_ns)
        seen = bars.slice(max(start - behind_ns, bars.start_ns), stop)
        labelled = bars.slice(max(start - behind_ns, bars.start_ns), min(stop + ahead_ns, bars.end_ns))
        features = compute_features(seen, spec, from_ns=start).to_frame()
        labels = forward_volatility(labelled, spec, from_ns=start, to_ns=stop).to_frame()
        wanted = features["product"].isin(list(products))
        yield join_rows(
            features.loc[wanted].reset_index(drop=True),
            labels.loc[labels["product"].isin(list(products))].reset_index(drop=True),
            spec,
        )
