"""Imported minute candles of many months, and the minutes known to be missing, in one folder.

``<root>/<product>/<YYYY-MM>.parquet`` contains a month's candles (`CANDLES`), ``<YYYY-MM>.holes.parquet``
beside it the minutes known to have none (`HOLES`). Each file is replaced as a whole, so a killed
import loses at most what it was about to write.

Belongs here: storing and reading, and the rule that a stored minute keeps its values. Does not belong here:
whether candles are plausible (`core/market/candle_checks.py`), and where they come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cryptovol_dagster.core.market.candle_checks import (
    COLUMNS,
    MINUTE_NS,
    NUMBERS,
    foreign_price,
    require_product,
    runs_of_minutes,
    same_values,
)
from cryptovol_dagster.core.times import DAY_NS, iso_utc, partition_at
from cryptovol_dagster.lake.atomic import replace_file
from ingestor import locks
from ingestor.errors import CryptovolError, first_line

#: Why a minute has no candle: the exchange answered that it has none; there was only an impossible row; it
#: was not requested from the exchange (never stored: these are the remaining minutes).
NO_CANDLE, BAD_ROW, NOT_ASKED = "no_candle", "bad_row", "not_asked"
#: The external asset that the history is in Dagster.
ASSET = "minutes/history"
#: `source` of candles from the exchange's REST interface.
REST = "rest"

CANDLES = pa.schema(
    [
        ("product", pa.string()),
        ("start_ns", pa.int64()),
        *((name, pa.float64()) for name in NUMBERS),
        ("source", pa.string()),
        ("imported_at", pa.timestamp("us", "UTC")),
    ]
)
HOLES = pa.schema(
    [("start_ns", pa.int64()), ("end_ns", pa.int64()), ("kind", pa.string()), ("detail", pa.string())]
)


class HistoryError(CryptovolError):
    """The history cannot be read, or contradicts new values; the message is one line."""


class HistoryWriteError(HistoryError):
    """The folder cannot be written: the disk is full, or permissions are missing."""


@dataclass(frozen=True)
class Recorded:
    """Changes of one call of `History.record`.

    Attributes:
        added: minutes that had no candle before.
        unchanged: minutes whose candle was stored already.
        replaced: minutes whose candle was another one.
        holes: minutes of which it was recorded that they have no candle.
        days: the days changed (``2024-01-31``), ascending.
    """

    added: int = 0
    unchanged: int = 0
    replaced: int = 0
    holes: int = 0
    days: tuple[str, ...] = field(default=())

    def __add__(self, other: Recorded) -> Recorded:
        return Recorded(
            self.added + other.added,
            self.unchanged + other.unchanged,
            self.replaced + other.replaced,
            self.holes + other.holes,
            tuple(sorted({*self.days, *other.days})),
        )


def day_of(start_ns: int) -> str:
    """Return the day of a time, UTC (``2024-01-31``)."""
    return partition_at(start_ns, DAY_NS)


def hole_minutes(starts: NDArray[np.int64], kind: str, detail: str | Sequence[str] = "") -> pd.DataFrame:
    """Return minutes without a candle in the form for `History.record`."""
    return pd.DataFrame({"start_ns": starts, "kind": kind, "detail": detail})


@dataclass(frozen=True)
class History:
    """Imported candles under `root`."""

    root: Path

    def products(self) -> list[str]:
        """List the products of which anything is stored."""
        return sorted({path.parent.name for path in self.root.glob("*/*.parquet")})

    def months(self, product: str) -> list[str]:
        """List the months of which candles are stored (``2024-01``), ascending."""
        return sorted(path.stem for path in (self.root / product).glob("????-??.parquet"))

    def span(self, product: str) -> tuple[int, int] | None:
        """Return start and end of the candles, in ns; None where there are none."""
        months = self.months(product)
        if not months:
            return None
        first, last = (self._month(product, month)["start_ns"] for month in (months[0], months[-1]))
        return int(first.iloc[0]), int(last.iloc[-1]) + MINUTE_NS

    def read(self, product: str, start_ns: int, end_ns: int) -> pd.DataFrame:
        """Read the candles that begin in ``[start_ns, end_ns)``, in order; `CANDLES`' columns.

        Raises:
            HistoryError: a file cannot be read.
        """
        stored = set(self.months(product))
        frame = _joined(
            [self._month(product, month) for month in _months(start_ns, end_ns) if month in stored]
        )
        inside = (frame["start_ns"] >= start_ns) & (frame["start_ns"] < end_ns)
        return frame.loc[inside].reset_index(drop=True)

    def read_products(self, products: Sequence[str], start_ns: int, end_ns: int) -> pd.DataFrame:
        """Read the candles of several products, one after the other.

        Raises:
            HistoryError: a file cannot be read.
        """
        return _joined([self.read(product, start_ns, end_ns) for product in products])

    def unknown(self, product: str, start_ns: int, end_ns: int) -> NDArray[np.int64]:
        """Return the starts of the minutes without a candle that were not requested from the exchange.

        Raises:
            HistoryError: a file cannot be read.
        """
        holes = self._holes(product, start_ns, end_ns)
        answered = holes.loc[holes["kind"] == NO_CANDLE, "start_ns"].to_numpy(np.int64)
        known = self.read(product, start_ns, end_ns)["start_ns"].to_numpy(np.int64)
        first_ns = -(-start_ns // MINUTE_NS) * MINUTE_NS
        return np.setdiff1d(np.arange(first_ns, end_ns, MINUTE_NS), np.concatenate([known, answered]))

    def holes(self, product: str, start_ns: int, end_ns: int) -> pd.DataFrame:
        """List the minutes without a candle, joined to spans; `HOLES`' columns, in order.

        Raises:
            HistoryError: a file cannot be read.
        """
        recorded = self._holes(product, start_ns, end_ns)
        unknown = self.unknown(product, start_ns, end_ns)
        unasked = np.setdiff1d(unknown, recorded["start_ns"].to_numpy(np.int64))
        return _to_spans(_joined([recorded, hole_minutes(unasked, NOT_ASKED)]))

    def record(
        self,
        product: str,
        candles: pd.DataFrame,
        *,
        source: str,
        now_ns: int,
        holes: pd.DataFrame | None = None,
        replace: bool = False,
        any_price: bool = False,
    ) -> Recorded:
        """Store candles and holes of a product; doing it again changes nothing.

        A minute that has a candle keeps it: the same values again are counted, others are refused. A hole is
        forgotten once its minute has a candle.

        Args:
            product: name of the product.
            candles: `COLUMNS`, checked (`check_candles`).
            source: where they are from (``file:<name>`` or `REST`).
            now_ns: the present.
            holes: in the form of `hole_minutes`.
            replace: replace stored values that differ.
            any_price: do not compare prices with those beside them.

        Raises:
            HistoryError: a minute has other values, prices are a factor away from those beside them, or a
                file cannot be read or written. Nothing was changed then.
        """
        require_product(product, "history")
        with self._lock(product):
            new = candles.loc[:, list(COLUMNS)].assign(
                source=source, imported_at=pd.Timestamp(now_ns // 1_000, unit="us", tz="UTC")
            )
            new["product"] = product
            stored = self._around(product, new)
            if not any_price and (sentence := foreign_price(stored, new)) is not None:
                raise HistoryError(f"{product}, {source}: {sentence} --any-price stores them anyway")
            differing, same = _compare(stored, new)
            if differing.size and not replace:
                raise HistoryError(_contradiction(product, stored, new, differing))
            changed = new.loc[~new["start_ns"].isin(same)]
            self._write_candles(product, changed)
            recorded = self._write_holes(product, new["start_ns"].to_numpy(np.int64), holes)
        days = np.unique(changed["start_ns"].to_numpy(np.int64) // DAY_NS) * DAY_NS
        return Recorded(
            added=len(changed) - len(differing),
            unchanged=len(same),
            replaced=len(differing),
            holes=recorded,
            days=tuple(day_of(day) for day in days.tolist()),
        )

    def _around(self, product: str, new: pd.DataFrame) -> pd.DataFrame:
        """Read the months that candles fall into, the last candle before those and the first after."""
        if new.empty:
            return _no_candles()
        touched = _months(int(new["start_ns"].min()), int(new["start_ns"].max()) + 1)
        stored = self.months(product)
        before = [month for month in stored if month < touched[0]][-1:]
        after = [month for month in stored if month > touched[-1]][:1]
        inside = [self._month(product, month) for month in touched if month in stored]
        return _joined(
            [
                *(self._month(product, month).tail(1) for month in before),
                *inside,
                *(self._month(product, month).head(1) for month in after),
            ]
        )

    def _write_candles(self, product: str, changed: pd.DataFrame) -> None:
        for month, rows in changed.groupby(_month_of(changed["start_ns"].to_numpy(np.int64))):
            path = self._path(product, str(month))
            old = self._month(product, str(month)) if path.is_file() else _no_candles()
            frame = _joined([old.loc[~old["start_ns"].isin(rows["start_ns"])], rows])
            _replace(path, pa.Table.from_pandas(frame.sort_values("start_ns"), CANDLES, preserve_index=False))

    def _write_holes(self, product: str, with_candle: NDArray[np.int64], holes: pd.DataFrame | None) -> int:
        new = holes if holes is not None else hole_minutes(np.empty(0, np.int64), NO_CANDLE)
        touched = np.concatenate([with_candle, new["start_ns"].to_numpy(np.int64)])
        recorded = 0
        for month in np.unique(_month_of(touched)).tolist():
            start_ns, end_ns = _month_window(month)
            old = self._month_holes(product, month)
            own = new.loc[(new["start_ns"] >= start_ns) & (new["start_ns"] < end_ns)]
            if old.empty and own.empty:
                continue
            stored = self.read(product, start_ns, end_ns)["start_ns"]
            # An answer of the exchange overrides a fault of a file.
            both = _joined([old, own])
            both = both.loc[~both["start_ns"].isin(stored)]
            order = both["kind"].map({NO_CANDLE: 0, BAD_ROW: 1})
            both = both.assign(order=order).sort_values(["start_ns", "order"]).drop_duplicates("start_ns")
            recorded += int((~both["start_ns"].isin(old["start_ns"])).sum())
            spans = _to_spans(both)
            if not spans.equals(_to_spans(old)):
                table = pa.Table.from_pandas(spans, HOLES, preserve_index=False)
                _replace(self._path(product, month, ".holes"), table)
        return recorded

    def _path(self, product: str, month: str, what: str = "") -> Path:
        return self.root / product / f"{month}{what}.parquet"

    def _month(self, product: str, month: str) -> pd.DataFrame:
        return _read(self._path(product, month), CANDLES)

    def _month_holes(self, product: str, month: str) -> pd.DataFrame:
        path = self._path(product, month, ".holes")
        return (
            _to_minutes(_read(path, HOLES))
            if path.is_file()
            else _to_minutes(HOLES.empty_table().to_pandas())
        )

    def _holes(self, product: str, start_ns: int, end_ns: int) -> pd.DataFrame:
        """Read the recorded holes, a row a minute."""
        frame = _joined([self._month_holes(product, month) for month in _months(start_ns, end_ns)])
        return frame.loc[(frame["start_ns"] >= start_ns) & (frame["start_ns"] < end_ns)]

    @contextmanager
    def _lock(self, product: str) -> Iterator[None]:
        """Lock a product for one import at a time; another one waits for that moment."""
        path = self.root / product / ".lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError as error:
            raise HistoryWriteError(f"{path}: cannot be written: {error.strerror or error}") from error
        with file:
            locks.lock(file)
            yield


def day_version(candles: pd.DataFrame) -> str:
    """Return a short hash of candles' values; equal candles have equal hashes."""
    digest = hashlib.sha256()
    for product, own in candles.groupby("product", sort=True):
        digest.update(str(product).encode())
        digest.update(own["start_ns"].to_numpy(np.int64).tobytes())
        digest.update(own[list(NUMBERS)].to_numpy(np.float64).tobytes())
    return digest.hexdigest()[:12]


def _no_candles() -> pd.DataFrame:
    return CANDLES.empty_table().to_pandas()


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate tables of one kind; an empty table of candles where there is none at all."""
    filled = [part for part in parts if len(part)] or list(parts[:1]) or [_no_candles()]
    return pd.concat(filled, ignore_index=True)


def _months(start_ns: int, end_ns: int) -> list[str]:
    """Return the months that ``[start_ns, end_ns)`` touches."""
    first, last = (
        np.datetime64(ns, "ns").astype("datetime64[M]") for ns in (start_ns, max(end_ns - 1, start_ns))
    )
    return [str(month) for month in np.arange(first, last + 1)]


def _month_of(starts_ns: NDArray[np.int64]) -> NDArray[np.str_]:
    return starts_ns.view("datetime64[ns]").astype("datetime64[M]").astype(str)


def _month_window(month: str) -> tuple[int, int]:
    first = np.datetime64(month, "M")
    start, end = (moment.astype("datetime64[ns]").astype(np.int64) for moment in (first, first + 1))
    return int(start), int(end)


def _to_minutes(spans: pd.DataFrame) -> pd.DataFrame:
    lengths = ((spans["end_ns"] - spans["start_ns"]) // MINUTE_NS).to_numpy(np.int64)
    row = np.repeat(np.arange(len(spans)), lengths)
    within = np.arange(row.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return pd.DataFrame(
        {
            "start_ns": spans["start_ns"].to_numpy(np.int64)[row] + within * MINUTE_NS,
            "kind": spans["kind"].to_numpy(object)[row],
            "detail": spans["detail"].to_numpy(object)[row],
        }
    )


def _to_spans(minutes: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for kind, detail in minutes[["kind", "detail"]].drop_duplicates().itertuples(index=False):
        own = minutes.loc[(minutes["kind"] == kind) & (minutes["detail"] == detail), "start_ns"]
        spans = runs_of_minutes(np.sort(own.to_numpy(np.int64)))
        rows += [(start_ns, end_ns, kind, detail) for start_ns, end_ns in spans]
    return pd.DataFrame(sorted(rows), columns=HOLES.names).astype(
        {"start_ns": np.int64, "end_ns": np.int64, "kind": object, "detail": object}
    )


def _compare(stored: pd.DataFrame, new: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the starts of minutes whose stored values differ from the new ones, and of those that agree."""
    both = new.merge(stored, on="start_ns", suffixes=("", "_stored"))
    agrees = np.ones(len(both), dtype=bool)
    for name in NUMBERS:
        ours, theirs = (both[column].to_numpy(np.float64) for column in (name, f"{name}_stored"))
        agrees &= same_values(name, ours, theirs)
    starts = both["start_ns"].to_numpy(np.int64)
    return starts[~agrees], starts[agrees]


def _contradiction(
    product: str, stored: pd.DataFrame, new: pd.DataFrame, differing: NDArray[np.int64]
) -> str:
    first = int(differing[0])
    old, given = (frame.loc[frame["start_ns"] == first].iloc[0] for frame in (stored, new))
    name = max(NUMBERS, key=lambda name: abs(old[name] - given[name]) / max(abs(old[name]), 1e-12))
    minutes = ", ".join(iso_utc(int(start)) for start in differing[:3])
    more = f" and {differing.size - 3} more" if differing.size > 3 else ""
    return (
        f"{product}: other values are stored for {differing.size} of {len(new)} minutes: {minutes}{more}; "
        f"in the first {name} {old[name]:.10g} ({old['source']}), now {given[name]:.10g} "
        f"({given['source']}); --replace stores the new ones"
    )


def _replace(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    try:
        replace_file(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise HistoryWriteError(f"{path}: cannot be written: {error.strerror or error}") from error


def _read(path: Path, schema: pa.Schema) -> pd.DataFrame:
    try:
        state = path.stat()
    except OSError as error:
        raise HistoryError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _read_state(path, schema, (state.st_ino, state.st_mtime_ns, state.st_size)).copy(deep=False)


@lru_cache(maxsize=8)
def _read_state(path: Path, schema: pa.Schema, state: tuple[int, int, int]) -> pd.DataFrame:
    """Read a file once while it is unchanged: a day is read from the file of its month."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise HistoryError(f"{path}: cannot be read as Parquet: {first_line(error)}") from error
    if not table.schema.equals(schema):
        raise HistoryError(
            f"{path}: expected columns {', '.join(schema.names)}, found {', '.join(table.column_names)}"
        )
    return table.to_pandas()
