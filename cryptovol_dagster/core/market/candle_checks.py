"""Validation of a table of minute candles: columns, times, order, prices, and product.

Belongs here: turning foreign exports into clean candles, or stating in one line why that is impossible. Does
not belong here: reading files, requests to the exchange, storing, and what a candle means as a bar
(`candle_bars.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import DAY_NS, iso_utc
from ingestor.errors import CryptovolError

MINUTE_NS = 60 * NS
PRICES = ("open", "high", "low", "close")
NUMBERS = (*PRICES, "volume")
#: Columns of clean candles, in order; `start_ns` is the first nanosecond of the minute, UTC.
COLUMNS = ("product", "start_ns", *NUMBERS)

#: Meaning → column names that exports use for it, in lower case.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "product": ("product", "product_id", "symbol", "pair", "market"),
    "start": (
        "start_ns", "start", "bar_open", "bar_start", "open_time", "time", "timestamp", "datetime", "date",
        "unix", "epoch",
    ),
    "open": ("open", "o"),
    "high": ("high", "h"),
    "low": ("low", "l"),
    "close": ("close", "c"),
    "volume": ("volume", "vol", "v"),
}  # fmt: skip
_PRODUCT = re.compile(r"[A-Z0-9]{1,20}-[A-Z0-9]{1,20}")
_ZONE = re.compile(r"\d{1,2}:\d{2}\S*?\s?(?:Z|z|UTC|[+-]\d{2}:?\d{2})$")
#: Epoch numbers by unit: (from this many on, nanoseconds in one). 1e9 s is 2001, 1e10 s is 2286.
_EPOCH_UNITS = ((10**9, NS), (10**12, 10**6), (10**15, 10**3), (10**18, 1))
#: Candle lengths other than one minute that exports use, in minutes.
_OTHER_INTERVALS = (3, 5, 10, 15, 30, 60, 120, 240, 360, 720, 1_440)
#: So many equal steps in a row are another interval, not holes. In a market where most minutes have a trade,
#: six by chance are less likely than one in a hundred million; in a thin market, twelve.
_RUN, _RUN_IN_A_THIN_MARKET = 6, 12
#: A market may move by e^0.5 at once, and by 10 % × √days further; a larger move means another market.
_JUMP, _JUMP_A_ROOT_DAY = 0.5, 0.1
#: Why a row is not a candle, by the code of `_impossible`.
_FAULTS = (
    "",
    "not a number",
    "price not above 0",
    "volume below 0",
    "low above high",
    "low above open or close",
    "high below open or close",
    "not at the start of a minute",
)
#: Rows shown in a message.
_SHOWN = 3


class CandleError(CryptovolError, ValueError):
    """A table is not a valid table of minute candles; the message is one line: expected, found, where."""


@dataclass(frozen=True)
class CandleCounts:
    """Rows by outcome of the checks; `rows` = `kept` + `duplicates` + `unfinished` + `bad`.

    Attributes:
        rows: in the table.
        kept: in the result.
        duplicates: equal to another row.
        unfinished: of minutes that were not over.
        bad: impossible rows, left out on request.
        steps_back: rows that are older than the row before them.
        without_volume: kept candles in which nothing was traded.
    """

    rows: int = 0
    kept: int = 0
    duplicates: int = 0
    unfinished: int = 0
    bad: int = 0
    steps_back: int = 0
    without_volume: int = 0


@dataclass(frozen=True)
class CheckedCandles:
    """Clean candles and what was left out.

    Attributes:
        candles: `COLUMNS`, ordered by product and time, each minute once.
        bad: `product`, `start_ns`, `reason`: minutes that have impossible rows only.
        counts: rows by outcome.
    """

    candles: pd.DataFrame
    bad: pd.DataFrame
    counts: CandleCounts


def check_candles(
    table: pd.DataFrame,
    where: str,
    *,
    now_ns: int,
    product: str | None = None,
    assume_utc: bool = False,
    skip_bad: bool = False,
    known_interval: bool = False,
) -> CheckedCandles:
    """Check a table of minute candles, and return it clean and ordered.

    Columns may have the names that exports commonly use; times may be timestamps, ISO 8601 text or seconds,
    milli-, micro- or nanoseconds since 1970. Equal duplicates and the minute that is not over yet are left
    out and counted, a wrong order is mended and counted.

    Args:
        table: one row per candle.
        where: source of the rows, for messages.
        now_ns: the present.
        product: the product of the candles; needed where no column names it.
        assume_utc: treat times without a zone as UTC.
        skip_bad: leave impossible rows out instead of refusing the table.
        known_interval: the rows are known to be of one minute (these were requested from the exchange).

    Raises:
        CandleError: the table does not contain minute candles of the product; two rows contradict each other;
            times have no zone, cannot be read or are in the future; rows are impossible and not skipped.

    Examples:
        >>> prices = {"open": [100.0] * 2, "high": [101.0] * 2, "low": [99.5] * 2, "close": [100.5] * 2}
        >>> table = pd.DataFrame({"time": ["2026-04-04T03:00:00Z"] * 2, **prices, "volume": [2.0] * 2})
        >>> checked = check_candles(table, "my.csv", now_ns=2_000_000_000 * NS, product="BTC-USD")
        >>> checked.counts.kept, checked.counts.duplicates
        (1, 1)
    """
    rows = _canonical(table, where, product, assume_utc)
    _require_past(rows, where, now_ns)
    finished = rows["start_ns"].to_numpy() + MINUTE_NS <= now_ns
    unfinished = int((~finished).sum())
    steps_back = _steps_back(rows)
    rows = rows.loc[finished]
    faults = _impossible(rows)
    bad = faults > 0
    reasons = [_FAULTS[code] for code in faults[bad]]
    if bad.any() and not skip_bad:
        raise CandleError(_refusal(rows.loc[bad], reasons, len(rows), where))
    good = rows.loc[~bad].sort_values(["product", "start_ns"], kind="stable")
    if not known_interval:
        for name, own in good.groupby("product", observed=True, sort=True):
            _require_minutes(str(name), own["start_ns"].to_numpy(np.int64), where)
    candles = _once_each(good, where)
    kept = candles.loc[:, list(COLUMNS)].reset_index(drop=True)
    counts = CandleCounts(
        rows=len(table),
        kept=len(kept),
        duplicates=len(good) - len(kept),
        unfinished=unfinished,
        bad=int(bad.sum()),
        steps_back=steps_back,
        without_volume=int((kept["volume"] == 0).sum()),
    )
    return CheckedCandles(kept, _bad_minutes(rows.loc[bad], reasons, kept), counts)


def require_product(name: str, where: str) -> str:
    """Return a product's name if it is valid, such as BTC-USD.

    Raises:
        CandleError: it is not.

    Examples:
        >>> require_product("BTC-USD", "my.csv")
        'BTC-USD'
        >>> require_product("1INCH-USD", "my.csv")
        '1INCH-USD'
    """
    if not _PRODUCT.fullmatch(name):
        raise CandleError(f"{where}: expected a product such as BTC-USD, found {name!r}")
    return name


def foreign_price(stored: pd.DataFrame, new: pd.DataFrame) -> str | None:
    """Return a sentence that says where new candles do not fit the stored ones; None where they fit.

    A market moves by less than e^(0.5 + 0.1 √days) from one candle to the next, so a larger move means
    another product. At a minute that both tables contain, prices must be as close as that.

    Args:
        stored: `COLUMNS` of the accepted candles; may be empty.
        new: `COLUMNS` of the candles to check.
    """
    both = (
        pd.concat([stored.assign(new=False), new.assign(new=True)]) if len(stored) else new.assign(new=True)
    )
    both = both.sort_values(["start_ns", "new"], kind="stable")
    starts, opened = both["start_ns"].to_numpy(np.int64), both["open"].to_numpy(np.float64)
    closed, is_new = both["close"].to_numpy(np.float64), both["new"].to_numpy(bool)
    moved = np.abs(np.log(opened[1:] / closed[:-1]))
    days = np.diff(starts) / DAY_NS
    wrong = np.flatnonzero((moved > _JUMP + _JUMP_A_ROOT_DAY * np.sqrt(days)) & (is_new[1:] | is_new[:-1]))
    if not wrong.size:
        return None
    before, after = int(wrong[0]), int(wrong[0]) + 1
    factor = max(opened[after] / closed[before], closed[before] / opened[after])
    return (
        f"expected prices of one market, found a factor of {factor:.3g} between "
        f"{iso_utc(int(starts[before]))} (close {closed[before]:g}, {_origin(is_new[before])}) and "
        f"{iso_utc(int(starts[after]))} (open {opened[after]:g}, {_origin(is_new[after])}): another "
        "product's candles?"
    )


def _origin(is_new: bool) -> str:
    return "new" if is_new else "stored"


def _canonical(table: pd.DataFrame, where: str, product: str | None, assume_utc: bool) -> pd.DataFrame:
    """Return `COLUMNS` and `row` (counted from 1), whatever the table calls them."""
    columns = _find_columns(table, where)
    out = pd.DataFrame({"row": np.arange(1, len(table) + 1)})
    out["product"] = _products(table, columns.get("product"), where, product)
    out["start_ns"] = _starts(pd.Series(table[columns["start"]]), where, assume_utc)
    for name in NUMBERS:
        out[name] = np.asarray(pd.to_numeric(table[columns[name]], errors="coerce"), dtype=np.float64)
    return out


def _find_columns(table: pd.DataFrame, where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for meaning, names in _ALIASES.items():
        here = [column for column in table.columns if str(column).strip().lower() in names]
        if len(here) > 1:
            raise CandleError(f"{where}: expected one column for {meaning}, found {', '.join(here)}")
        if here:
            found[meaning] = here[0]
    missing = [meaning for meaning in _ALIASES if meaning not in found and meaning != "product"]
    if missing:
        named = "; ".join(f"{meaning} ({', '.join(_ALIASES[meaning])})" for meaning in missing)
        raise CandleError(
            f"{where}: expected a column for each of {named}; found {', '.join(map(str, table.columns))}"
        )
    return found


def _products(
    table: pd.DataFrame, column: str | None, where: str, product: str | None
) -> pd.Categorical | str:
    if column is None:
        if product is None:
            raise CandleError(f"{where}: no column names the product: name it with --product")
        return pd.Categorical.from_codes(np.zeros(len(table), np.int8), [require_product(product, where)])
    words = pd.Categorical(table[column])
    if words.isna().any():
        raise CandleError(f"{where}: row {_first(words.isna())} has no product")
    words = words.rename_categories([str(word) for word in words.categories])
    for word in words.categories:
        require_product(word, where)
    if product is not None and (others := [word for word in words.categories if word != product]):
        wrong = np.flatnonzero(np.asarray(words) != product)
        raise CandleError(
            f"{where}: expected candles of {product} only, found {wrong.size} of {len(table)} rows of "
            f"{', '.join(others[:_SHOWN])}, the first in row {wrong[0] + 1}"
        )
    return words


def _starts(column: pd.Series, where: str, assume_utc: bool) -> NDArray[np.int64]:
    """Read starts of minutes as nanoseconds since 1970 UTC."""
    if column.isna().any():
        raise CandleError(f"{where}: row {_first(column.isna())} has no time")
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return (
            column.dt.tz_convert("UTC")
            .astype("datetime64[ns, UTC]")
            .to_numpy("datetime64[ns]")
            .view(np.int64)
        )
    if pd.api.types.is_datetime64_dtype(column.dtype):
        _require_zone(np.ones(len(column), bool), column, where, assume_utc)
        return column.to_numpy("datetime64[ns]").view(np.int64)
    numbers = pd.Series(pd.to_numeric(column, errors="coerce"))
    if not numbers.isna().any():
        return _epochs(numbers, where)
    return _read_text(column.astype(str).str.strip(), where, assume_utc)


def _epochs(numbers: pd.Series, where: str) -> NDArray[np.int64]:
    if not len(numbers):
        return np.empty(0, np.int64)
    whole = numbers.to_numpy(np.int64)
    units = np.searchsorted([least for least, _ in _EPOCH_UNITS], whole, side="right") - 1
    if (units < 0).any() or (units != units[0]).any():
        odd = _first((units < 0) | (units != units[0]))
        raise CandleError(
            f"{where}: expected times since 1970 in one unit (s, ms, µs or ns), found {whole[odd - 1]} "
            f"in row {odd}" + ("" if (units < 0).any() else f" after {whole[0]} in row 1")
        )
    scale = _EPOCH_UNITS[int(units[0])][1]
    fraction = numbers.to_numpy(np.float64) - whole if numbers.dtype.kind == "f" else 0
    return whole * scale + np.rint(fraction * scale).astype(np.int64)


def _read_text(texts: pd.Series, where: str, assume_utc: bool) -> NDArray[np.int64]:
    zoned = texts.str.contains(_ZONE.pattern, regex=True).to_numpy(bool) if len(texts) else np.empty(0, bool)
    times = pd.to_datetime(
        texts.str.replace(r"\s?UTC$", "Z", regex=True), format="ISO8601", utc=True, errors="coerce"
    )
    if times.isna().any():
        row = _first(times.isna())
        raise CandleError(
            f"{where}: expected ISO 8601 or a number since 1970 as time, found {texts.iloc[row - 1]!r} "
            f"in row {row}"
        )
    _require_zone(~zoned, texts, where, assume_utc)
    return times.astype("datetime64[ns, UTC]").to_numpy("datetime64[ns]").view(np.int64)


def _require_zone(naive: NDArray[np.bool_], column: pd.Series, where: str, assume_utc: bool) -> None:
    if naive.any() and not assume_utc:
        row = _first(naive)
        raise CandleError(
            f"{where}: expected times with a zone (…Z, …+00:00), found {int(naive.sum())} of {len(naive)} "
            f"without, the first {str(column.iloc[row - 1])!r} in row {row}; --assume-utc treats them as UTC"
        )


def _first(mask: pd.Series | NDArray[np.bool_]) -> int:
    """Return the number, counted from 1, of the first row of a mask."""
    return int(np.flatnonzero(np.asarray(mask))[0]) + 1


def _require_past(rows: pd.DataFrame, where: str, now_ns: int) -> None:
    ahead = rows["start_ns"].to_numpy() > now_ns
    if ahead.any():
        first = rows.loc[ahead].iloc[0]
        raise CandleError(
            f"{where}: expected candles of the past, found {int(ahead.sum())} of {len(rows)} in the future, "
            f"the first in row {first['row']}: {first['product']} {iso_utc(int(first['start_ns']))}"
        )


def _steps_back(rows: pd.DataFrame) -> int:
    return sum(
        int((np.diff(own.to_numpy()) < 0).sum())
        for _, own in rows.groupby("product", observed=True)["start_ns"]
    )


def _impossible(rows: pd.DataFrame) -> NDArray[np.int8]:
    """Return each row's fault as an index into `_FAULTS`, the first that applies; 0 where it has none."""
    opened, high, low, close, volume = (rows[name].to_numpy(np.float64) for name in NUMBERS)
    faults = (
        ~np.isfinite(opened + high + low + close + volume),
        (low <= 0) | (opened <= 0) | (close <= 0) | (high <= 0),
        volume < 0,
        low > high,
        low > np.minimum(opened, close),
        high < np.maximum(opened, close),
        rows["start_ns"].to_numpy() % MINUTE_NS != 0,
    )
    found = np.zeros(len(rows), dtype=np.int8)
    for code, fault in reversed(list(enumerate(faults, start=1))):
        found[fault] = code
    return found


def _refusal(bad: pd.DataFrame, reasons: Sequence[str], total: int, where: str) -> str:
    shown = "; ".join(
        f"row {row['row']} ({row['product']} {iso_utc(int(row['start_ns']))}): {reason}, "
        + " ".join(f"{name[0]} {row[name]:g}" for name in NUMBERS)
        for reason, (_, row) in zip(reasons[:_SHOWN], bad.iloc[:_SHOWN].iterrows(), strict=True)
    )
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return (
        f"{where}: expected possible candles, found {len(bad)} of {total} that are not: {shown}{more}; "
        "--skip-bad leaves them out and records them as holes"
    )


def _require_minutes(product: str, starts: NDArray[np.int64], where: str) -> None:
    """Refuse candles of another interval, whole files of them or stretches among minutes, in order."""
    starts = starts[np.diff(starts, prepend=-1) > 0]
    steps = np.diff(starts) // MINUTE_NS
    if steps.size < _RUN:
        return
    others = np.isin(steps, _OTHER_INTERVALS)
    for interval in _OTHER_INTERVALS:
        if 2 * int((steps == interval).sum()) > steps.size:
            raise CandleError(
                f"{where}: expected candles of 1 minute, found {product} {interval} minutes apart"
            )
    needed = _RUN if 2 * int((steps == 1).sum()) >= steps.size else _RUN_IN_A_THIN_MARKET
    edges = np.flatnonzero(np.diff(steps, prepend=-1, append=-1))
    for begin, end in pairwise(edges.tolist()):
        if end - begin >= needed and others[begin] and starts[begin] % (steps[begin] * MINUTE_NS) == 0:
            raise CandleError(
                f"{where}: expected candles of 1 minute, found {product} {steps[begin]} minutes apart from "
                f"{iso_utc(int(starts[begin]))} to {iso_utc(int(starts[end]))}"
            )


def _once_each(rows: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return the rows without repeats; `rows` are in order of product, time and row."""
    repeated = rows.duplicated(["product", "start_ns"]).to_numpy()
    if not repeated.any():
        return rows
    numbers = rows[list(NUMBERS)].to_numpy(np.float64)
    differs = repeated[1:] & (numbers[1:] != numbers[:-1]).any(axis=1)
    if differs.any():
        second = int(np.flatnonzero(differs)[0]) + 1
        one, other = rows.iloc[second - 1], rows.iloc[second]
        name = next(name for name in NUMBERS if one[name] != other[name])
        raise CandleError(
            f"{where}: expected one candle a minute, found {int(differs.sum())} that contradict another, the "
            f"first {one['product']} {iso_utc(int(one['start_ns']))}: {name} {one[name]:g} in row "
            f"{one['row']}, {other[name]:g} in row {other['row']}"
        )
    return rows.loc[~repeated]


def _bad_minutes(bad: pd.DataFrame, reasons: Sequence[str], kept: pd.DataFrame) -> pd.DataFrame:
    """Return the minutes that have impossible rows only."""
    minutes = pd.DataFrame(
        {
            "product": bad["product"].astype(str).to_numpy(),
            "start_ns": bad["start_ns"].to_numpy() // MINUTE_NS * MINUTE_NS,
            "reason": pd.Series(reasons, dtype=object),
        }
    ).drop_duplicates(["product", "start_ns"])
    known = minutes.merge(kept[["product", "start_ns"]].astype({"product": str}), how="left", indicator=True)
    return minutes.loc[(known["_merge"] == "left_only").to_numpy()].reset_index(drop=True)


def same_values(name: str, one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where two sources agree on a candle's value; exports round volumes to six digits, prices not.

    Args:
        name: which of `NUMBERS`.
        one: values of one source.
        other: those of the other.
    """
    if name in PRICES:
        return np.isclose(one, other, rtol=1e-9, atol=0)
    return np.isclose(one, other, rtol=1e-6, atol=1e-6)


def runs_of_minutes(starts: NDArray[np.int64]) -> Sequence[tuple[int, int]]:
    """Join ascending starts of minutes to half-open spans ``[start_ns, end_ns)`` without holes.

    Examples:
        >>> runs_of_minutes(MINUTE_NS * np.array([0, 1, 2, 7]))
        [(0, 180000000000), (420000000000, 480000000000)]
    """
    if not starts.size:
        return []
    breaks = np.flatnonzero(np.diff(starts) != MINUTE_NS)
    firsts = starts[np.concatenate([[0], breaks + 1])]
    lasts = starts[np.concatenate([breaks, [starts.size - 1]])]
    return list(zip(firsts.tolist(), (lasts + MINUTE_NS).tolist(), strict=True))
