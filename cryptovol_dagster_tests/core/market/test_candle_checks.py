"""Tables of candles that others export: what is brought into order, and what is refused in which words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster.core.market.candle_checks import (
    COLUMNS,
    MINUTE_NS,
    NUMBERS,
    CandleError,
    check_candles,
    foreign_price,
    runs_of_minutes,
)
from cryptovol_dagster_tests.candle_server import made_candles

FIRST = pd.Timestamp("2024-01-01", tz="UTC").value
NOW = FIRST + 10_000 * MINUTE_NS
GOOD = made_candles(FIRST, 30).assign(product="BTC-USD")


def check(table: pd.DataFrame, **choices):
    return check_candles(table, "t.csv", now_ns=choices.pop("now_ns", NOW), **choices)


def refusal(table: pd.DataFrame, **choices) -> str:
    with pytest.raises(CandleError) as caught:
        check(table, **choices)
    return str(caught.value)


def changed(row: int, **values: object) -> pd.DataFrame:
    table = GOOD.copy()
    for name, value in values.items():
        table[name] = table[name].astype(object) if isinstance(value, str) else table[name]
        table.loc[row, name] = value
    return table


def starts_as(values: object) -> pd.DataFrame:
    return GOOD.drop(columns="start_ns").assign(time=values)


STARTS = pd.Series(pd.to_datetime(GOOD["start_ns"], unit="ns", utc=True))


@pytest.mark.parametrize(
    ("time", "choices"),
    [
        (GOOD["start_ns"] // 10**9, {}),
        (GOOD["start_ns"] // 10**6, {}),
        (GOOD["start_ns"] // 10**3, {}),
        ((GOOD["start_ns"] // 10**9).astype(str), {}),
        ((GOOD["start_ns"] / 10**9), {}),
        (STARTS, {}),
        (STARTS.dt.tz_convert("Asia/Tokyo"), {}),
        (STARTS.astype("datetime64[s, UTC]"), {}),
        (STARTS.dt.strftime("%Y-%m-%dT%H:%M:%SZ"), {}),
        (STARTS.dt.strftime("%Y-%m-%d %H:%M:%S UTC"), {}),
        (STARTS.dt.tz_convert("Asia/Tokyo").dt.strftime("%Y-%m-%d %H:%M:%S%z"), {}),
        (STARTS.dt.strftime("%Y-%m-%d %H:%M:%S"), {"assume_utc": True}),
        (STARTS.dt.tz_localize(None), {"assume_utc": True}),
    ],
    ids=[
        "s", "ms", "µs", "text", "float", "UTC", "Tokyo", "s64", "Z", "UTC-", "+0900", "naive", "naive-ns",
    ],
)  # fmt: skip
def test_times_are_read_as_exports_write_them(time: pd.Series, choices: dict[str, bool]) -> None:
    found = check(starts_as(time), **choices)
    pd.testing.assert_frame_equal(
        found.candles.astype({"product": object}), GOOD[list(COLUMNS)], check_dtype=False
    )


def test_columns_are_known_by_the_names_that_exports_have() -> None:
    table = GOOD.rename(
        columns={"start_ns": "Timestamp", "product": "Symbol", **{name: name[0].upper() for name in NUMBERS}}
    )
    assert check(table).counts.kept == 30
    assert check(GOOD.drop(columns="product"), product="ETH-USD").candles["product"].unique() == ["ETH-USD"]


@pytest.mark.parametrize(
    ("table", "choices", "says"),
    [
        (
            GOOD.drop(columns=["close", "volume"]),
            {},
            "t.csv: expected a column for each of close (close, c); volume (volume, vol, v); found start_ns",
        ),
        (GOOD.assign(date="x"), {}, "t.csv: expected one column for start, found start_ns, date"),
        (
            GOOD.drop(columns="product"),
            {},
            "t.csv: no column names the product: name it with --product",
        ),
        (
            changed(4, product="ETH-USD"),
            {"product": "BTC-USD"},
            "t.csv: expected candles of BTC-USD only, found 1 of 30 rows of ETH-USD, the first in row 5",
        ),
        (
            changed(4, product="../x"),
            {},
            "t.csv: expected a product such as BTC-USD, found '../x'",
        ),
        (changed(4, product=None), {}, "t.csv: row 5 has no product"),
        (
            starts_as(STARTS.dt.strftime("%Y-%m-%d %H:%M:%S")),
            {},
            "t.csv: expected times with a zone (…Z, …+00:00), found 30 of 30 without, the first "
            "'2024-01-01 00:00:00' in row 1; --assume-utc treats them as UTC",
        ),
        (
            starts_as(STARTS.dt.tz_localize(None)),
            {},
            "t.csv: expected times with a zone (…Z, …+00:00), found 30 of 30 without, the first "
            "'2024-01-01 00:00:00' in row 1; --assume-utc treats them as UTC",
        ),
        (
            starts_as(["soon", *STARTS.dt.strftime("%Y-%m-%dT%H:%M:%SZ")[1:]]),
            {},
            "t.csv: expected ISO 8601 or a number since 1970 as time, found 'soon' in row 1",
        ),
        (
            starts_as([*(GOOD["start_ns"][:29] // 10**9), FIRST // 10**6]),
            {},
            "t.csv: expected times since 1970 in one unit (s, ms, µs or ns), found 1704067200000 in row 30 "
            "after 1704067200 in row 1",
        ),
        (
            starts_as(np.arange(30)),
            {},
            "t.csv: expected times since 1970 in one unit (s, ms, µs or ns), found 0 in row 1",
        ),
        (starts_as([None, *STARTS[1:]]), {}, "t.csv: row 1 has no time"),
        (
            GOOD,
            {"now_ns": FIRST + 5 * MINUTE_NS},
            "t.csv: expected candles of the past, found 24 of 30 in the future, the first in row 7: BTC-USD "
            "2024-01-01T00:06:00Z",
        ),
        (
            pd.concat([GOOD, changed(3, close=40_001.0).iloc[[3]]]),
            {},
            "t.csv: expected one candle a minute, found 1 that contradict another, the first BTC-USD "
            "2024-01-01T00:03:00Z: close ",
        ),
        (
            made_candles(FIRST, 600)[::5].assign(product="BTC-USD"),
            {},
            "t.csv: expected candles of 1 minute, found BTC-USD 5 minutes apart",
        ),
        (
            pd.concat([GOOD, made_candles(FIRST + 30 * MINUTE_NS, 60)[::5].assign(product="BTC-USD")]),
            {},
            "t.csv: expected candles of 1 minute, found BTC-USD 5 minutes apart from 2024-01-01T00:30:00Z to "
            "2024-01-01T01:25:00Z",
        ),
    ],
)  # fmt: skip
def test_what_is_no_table_of_minute_candles_is_refused(
    table: pd.DataFrame, choices: dict[str, object], says: str
) -> None:
    assert refusal(table, **choices).startswith(says)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"close": np.nan}, "not a number"),
        ({"high": np.inf}, "not a number"),
        ({"volume": "n/a"}, "not a number"),
        ({"low": 0.0}, "price not above 0"),
        ({"open": -1.0}, "price not above 0"),
        ({"volume": -0.5}, "volume below 0"),
        ({"low": 50_000.0}, "low above high"),
        ({"low": float(GOOD["high"][7])}, "low above open or close"),
        ({"high": float(GOOD["low"][7])}, "high below open or close"),
        ({"start_ns": int(GOOD["start_ns"][7]) + 1}, "not at the start of a minute"),
    ],
)
def test_an_impossible_row_is_refused_or_left_out_as_a_hole(values: dict[str, object], reason: str) -> None:
    table = changed(7, **values)
    said = refusal(table)
    assert said.startswith(
        "t.csv: expected possible candles, found 1 of 30 that are not: row 8 (BTC-USD 2024-01"
    )
    assert f"): {reason}, o " in said
    assert said.endswith("--skip-bad leaves them out and records them as holes")
    found = check(table, skip_bad=True)
    assert (found.counts.kept, found.counts.bad) == (29, 1)
    assert found.bad.to_dict("records") == [
        {"product": "BTC-USD", "start_ns": FIRST + 7 * MINUTE_NS, "reason": reason}
    ]


def test_an_impossible_row_beside_a_good_one_of_its_minute_is_no_hole() -> None:
    found = check(pd.concat([changed(7, volume=-1.0), GOOD.iloc[[7]]]), skip_bad=True)
    assert (found.counts.kept, found.counts.bad, len(found.bad)) == (30, 1, 0)


def test_many_impossible_rows_are_counted_and_three_shown() -> None:
    said = refusal(GOOD.assign(volume=-1.0))
    assert "found 30 of 30 that are not: row 1 (" in said
    assert "; row 3 (" in said
    assert "; and 27 more; " in said
    assert "row 4 (" not in said


def test_the_minute_that_is_not_over_is_left_out() -> None:
    found = check(GOOD, now_ns=FIRST + 29 * MINUTE_NS + MINUTE_NS // 2)
    assert (found.counts.kept, found.counts.unfinished) == (29, 1)
    assert check(GOOD, now_ns=FIRST + 30 * MINUTE_NS).counts.unfinished == 0


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_order_and_repeats_change_nothing_but_the_counts(data: st.DataObject) -> None:
    two = pd.concat([GOOD, made_candles(FIRST, 20, level=2_000, seed=2).assign(product="ETH-USD")])
    rows = data.draw(st.permutations(range(len(two))))
    again = data.draw(st.lists(st.integers(0, len(two) - 1), max_size=10))
    given_rows = two.iloc[[*rows, *again]]
    found = check(given_rows)
    pd.testing.assert_frame_equal(found.candles, check(two).candles)
    assert found.counts.duplicates == len(again)
    assert found.counts.rows == found.counts.kept + found.counts.duplicates


def test_a_file_the_newest_first_is_sorted_and_that_is_counted() -> None:
    found = check(GOOD[::-1])
    assert found.counts.steps_back == 29
    assert found.candles["start_ns"].is_monotonic_increasing


MINUTES = made_candles(FIRST, 400).assign(product="BTC-USD")


@given(st.integers(0, 10_000), st.floats(0.05, 1.0))
@settings(max_examples=40, deadline=None)
def test_holes_are_not_taken_for_another_interval(seed: int, share: float) -> None:
    kept = MINUTES[np.random.default_rng(seed).uniform(size=len(MINUTES)) < share]
    assert check(kept).counts.kept == len(kept)


def test_another_products_prices_are_found_where_they_meet() -> None:
    stored = made_candles(FIRST, 60).assign(product="BTC-USD")[list(COLUMNS)]
    later = made_candles(FIRST + 60 * MINUTE_NS, 10, level=2_400.0).assign(product="BTC-USD")[list(COLUMNS)]
    said = foreign_price(stored, later) or ""
    assert said.startswith("expected prices of one market, found a factor of 16.")
    assert "between 2024-01-01T00:59:00Z (close " in said
    assert "stored) and 2024-01-01T01:00:00Z (open 2400, new): another product's candles?" in said
    assert foreign_price(stored, made_candles(FIRST + 60 * MINUTE_NS, 10, level=30_000.0)) is None
    # What lies between is as wrong as what follows, and so is the same minute.
    assert foreign_price(stored.iloc[::2], later.assign(start_ns=stored["start_ns"][1:20:2].to_numpy()))
    assert foreign_price(stored, later.assign(start_ns=stored["start_ns"][:10].to_numpy()))
    # In a year a market may go far; a table may not hold two.
    year = later.assign(start_ns=later["start_ns"] + 365 * 1_440 * MINUTE_NS)
    assert foreign_price(stored, year)
    assert foreign_price(stored, year.assign(**{name: year[name] * 3 for name in ("open", "close")})) is None
    assert foreign_price(stored.iloc[:0], pd.concat([stored, later]))


def test_minutes_join_to_spans() -> None:
    starts = FIRST + MINUTE_NS * np.array([0, 1, 3, 4, 5, 9])
    spans = [((a - FIRST) // MINUTE_NS, (b - FIRST) // MINUTE_NS) for a, b in runs_of_minutes(starts)]
    assert spans == [(0, 2), (3, 6), (9, 10)]
    assert list(runs_of_minutes(starts[:0])) == []
