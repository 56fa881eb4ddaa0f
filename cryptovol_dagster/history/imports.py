"""Bringing candles into the history: from files, or from the exchange, page by page.

Belongs here: what to read or request next, and what an answer means for minutes without a candle. Does not
belong here: checks (`core/market/candle_checks.py`), storing (`store.py`), HTTP (`api.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cryptovol_dagster.core.market.candle_checks import (
    MINUTE_NS,
    CandleCounts,
    CandleError,
    check_candles,
)
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.history.store import (
    BAD_ROW,
    NO_CANDLE,
    REST,
    History,
    Recorded,
    hole_minutes,
)
from ingestor.errors import first_line

if TYPE_CHECKING:
    from cryptovol_dagster.history.api import CandleApi, CandleApiError

Format = Literal["csv", "parquet"]
#: A minute is requested once it has been over for this long: trades are published late, and an early answer
#: would record a hole for a minute that has a candle.
SETTLED_NS = 120 * NS
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Choices:
    """Options of an import.

    Attributes:
        skip_bad: leave impossible rows out and record their minutes as holes.
        assume_utc: take times without a zone for UTC.
        replace: replace stored values that differ.
        any_price: do not compare prices with those beside them.
    """

    skip_bad: bool = False
    assume_utc: bool = False
    replace: bool = False
    any_price: bool = False


@dataclass(frozen=True)
class Imported:
    """The result of an import, by product.

    Attributes:
        counts: rows by outcome of the checks, by source (a file's name, or `REST`).
        recorded: changes of the history.
    """

    counts: Mapping[str, CandleCounts] = field(default_factory=dict)
    recorded: Mapping[str, Recorded] = field(default_factory=dict)

    def with_recorded(self, product: str, recorded: Recorded) -> Imported:
        """Return the result with further changes of a product."""
        known = self.recorded.get(product, Recorded())
        return replace(self, recorded={**self.recorded, product: known + recorded})


def import_file(
    history: History,
    path: Path,
    *,
    now_ns: int,
    product: str | None = None,
    file_format: Format | None = None,
    choices: Choices = Choices(),
) -> Imported:
    """Import a file of minute candles, CSV (plain or gz) or Parquet, of one product or several.

    Args:
        history: where to.
        path: the file.
        now_ns: the present.
        product: name of the product; needed where no column names it.
        file_format: by default recognised by its first bytes.
        choices: options of the import.

    Raises:
        CandleError: the file cannot be read, or taken for minute candles.
        HistoryError: it contradicts stored values. Earlier products of the file are stored.
    """
    table = read_table(path, file_format)
    checked = check_candles(
        table,
        str(path),
        now_ns=now_ns,
        product=product,
        assume_utc=choices.assume_utc,
        skip_bad=choices.skip_bad,
    )
    del table  # keep a year of candles in memory only once
    done = Imported({str(path): checked.counts})
    bad = checked.bad
    for name in sorted({*checked.candles["product"].astype(str).unique(), *bad["product"]}):
        own_bad = bad.loc[bad["product"] == name]
        recorded = history.record(
            name,
            checked.candles.loc[checked.candles["product"] == name],
            source=f"file:{path.name}",
            now_ns=now_ns,
            holes=hole_minutes(own_bad["start_ns"].to_numpy(np.int64), BAD_ROW, own_bad["reason"].tolist()),
            replace=choices.replace,
            any_price=choices.any_price,
        )
        done = done.with_recorded(name, recorded)
    return done


def read_table(path: Path, file_format: Format | None = None) -> pd.DataFrame:
    """Read a file as a table, CSV (plain or gz) or Parquet.

    Raises:
        CandleError: it cannot be read.
    """
    import pyarrow.csv
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            is_parquet = file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
        kind = file_format or ("parquet" if is_parquet else "csv")
        if kind == "csv":
            return pyarrow.csv.read_csv(path).to_pandas()
        with pyarrow.parquet.ParquetFile(path) as parquet:
            return parquet.read().to_pandas()
    except OSError as error:
        raise CandleError(f"{path}: cannot be read: {error.strerror or error}") from error
    except pa.ArrowException as error:
        kind = file_format or "CSV or Parquet"
        raise CandleError(f"{path}: cannot be read as {kind}: {first_line(error)}") from error


def pages(unknown: NDArray[np.int64], page_minutes: int) -> Iterator[tuple[int, int]]:
    """Group ascending starts of minutes into spans of at most `page_minutes`.

    Known minutes between them are requested again: a call for one of two minutes costs as
    much as a call for both.
    """
    at = 0
    while at < unknown.size:
        begin = int(unknown[at])
        at = int(np.searchsorted(unknown, begin + page_minutes * MINUTE_NS))
        yield begin, int(unknown[at - 1]) + MINUTE_NS


def settled_until(now_ns: int) -> int:
    """Return the end of the last minute that may be requested."""
    return (now_ns - SETTLED_NS) // MINUTE_NS * MINUTE_NS


def import_span(
    history: History,
    api: CandleApi,
    product: str,
    start_ns: int,
    end_ns: int,
    *,
    clock_ns: Callable[[], int],
    choices: Choices = Choices(),
    page_minutes: int | None = None,
    pages_at_once: int = 1,
) -> Iterator[tuple[int, int, Imported]]:
    """Request the missing candles of a product in ``[start_ns, end_ns)``, oldest first.

    Pages are stored before the next ones are requested, with minutes that the answers lack as holes. So the
    next import continues where an interrupted one ended.

    Args:
        history: where to.
        api: whom to ask.
        product: name of the product.
        start_ns: first time.
        end_ns: end of the times; minutes that have not been over for two minutes are not requested.
        clock_ns: returns the present time.
        choices: options of the import; with `replace`, stored minutes are requested as well.
        page_minutes: of a call.
        pages_at_once: so many are stored together, which costs little more than one; a kill loses as many.

    Yields:
        After each step, minutes requested so far, minutes to request in all, and the result of these pages.

    Raises:
        CandleApiError: the exchange does not return them. Earlier pages are stored.
        CandleError: an answer cannot be taken for candles.
        HistoryError: an answer contradicts stored values.
    """
    from cryptovol_dagster.history.api import PAGE_MINUTES

    until_ns = min(end_ns, settled_until(clock_ns()))
    if choices.replace:
        wanted = np.arange(-(-start_ns // MINUTE_NS) * MINUTE_NS, until_ns, MINUTE_NS)
    else:
        wanted = history.unknown(product, start_ns, until_ns)
    asked = 0
    ahead = pages(wanted, page_minutes or PAGE_MINUTES)
    while group := list(islice(ahead, pages_at_once)):
        answers, failure = _ask(api, product, group)
        if answers:
            until = int(np.searchsorted(wanted, group[len(answers) - 1][1]))
            rows = pd.concat([rows for rows in answers if len(rows)] or answers[:1], ignore_index=True)
            imported = _record_rows(
                history, product, rows, wanted[asked:until], now_ns=clock_ns(), choices=choices
            )
            asked = until
            yield asked, wanted.size, imported
        if failure is not None:
            raise failure


def _ask(
    api: CandleApi, product: str, group: Sequence[tuple[int, int]]
) -> tuple[list[pd.DataFrame], CandleApiError | None]:
    """Request pages; return the answers, and the error at the page after them."""
    from cryptovol_dagster.history.api import CandleApiError

    answers = []
    for begin_ns, stop_ns in group:
        try:
            answers.append(api.page(product, begin_ns, stop_ns))
        except CandleApiError as error:
            return answers, error
    return answers, None


def _record_rows(
    history: History,
    product: str,
    rows: pd.DataFrame,
    asked: NDArray[np.int64],
    *,
    now_ns: int,
    choices: Choices,
) -> Imported:
    """Check the candles of pages and store them; minutes without one are stored as holes.

    Args:
        history: where to.
        product: name of the product.
        rows: the answers, a row a candle.
        asked: starts of the requested minutes, ascending.
        now_ns: the present.
        choices: options of the import.
    """
    checked = check_candles(
        rows,
        f"{product} candles of the exchange",
        now_ns=now_ns,
        product=product,
        skip_bad=choices.skip_bad,
        known_interval=True,
    )
    recorded = history.record(
        product,
        checked.candles,
        source=REST,
        now_ns=now_ns,
        holes=_answered(asked, checked.candles, checked.bad),
        replace=choices.replace,
        any_price=choices.any_price,
    )
    return Imported({REST: checked.counts}).with_recorded(product, recorded)


def _answered(asked: NDArray[np.int64], candles: pd.DataFrame, bad: pd.DataFrame) -> pd.DataFrame:
    """Return the holes of pages: minutes with an impossible candle, and those without any."""
    spoilt = bad["start_ns"].to_numpy(np.int64)
    silent = np.setdiff1d(asked, np.concatenate([candles["start_ns"].to_numpy(np.int64), spoilt]))
    parts = [hole_minutes(silent, NO_CANDLE), hole_minutes(spoilt, BAD_ROW, bad["reason"].tolist())]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
