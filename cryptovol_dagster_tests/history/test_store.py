"""The history: stored once, holes told, contradictions refused, files replaced as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.core.market.candle_checks import COLUMNS, MINUTE_NS, NUMBERS
from cryptovol_dagster.history.store import (
    BAD_ROW,
    CANDLES,
    DAY_NS,
    NO_CANDLE,
    NOT_ASKED,
    History,
    HistoryError,
    Recorded,
    day_version,
    hole_minutes,
)
from cryptovol_dagster_tests.candle_server import made_candles

#: Ten minutes before February.
FIRST = pd.Timestamp("2024-01-31T23:50", tz="UTC").value
GIVEN = made_candles(FIRST, 30).assign(product="BTC-USD")[list(COLUMNS)]
END = FIRST + 30 * MINUTE_NS


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history")


def record(history: History, candles: pd.DataFrame, **options) -> Recorded:
    return history.record("BTC-USD", candles, source="file:a.csv", now_ns=END, **options)


def spans(history: History) -> list[tuple[int, int, str, str]]:
    holes = history.holes("BTC-USD", FIRST, END)
    return [
        ((row.start_ns - FIRST) // MINUTE_NS, (row.end_ns - FIRST) // MINUTE_NS, row.kind, row.detail)
        for row in holes.itertuples()
    ]


def test_candles_are_stored_by_month_and_read_back(history: History) -> None:
    done = record(history, GIVEN)
    assert done == Recorded(added=30, days=("2024-01-31", "2024-02-01"))
    assert history.months("BTC-USD") == ["2024-01", "2024-02"]
    found = history.read("BTC-USD", FIRST, END)
    pd.testing.assert_frame_equal(found[list(COLUMNS)], GIVEN)
    assert found.columns.tolist() == CANDLES.names
    assert found["source"].unique().tolist() == ["file:a.csv"]
    assert found["imported_at"].unique().tolist() == [pd.Timestamp(END, tz="UTC")]
    day = history.read_products(
        ["BTC-USD", "ETH-USD"], FIRST // DAY_NS * DAY_NS, FIRST // DAY_NS * DAY_NS + DAY_NS
    )
    assert len(day) == 10
    assert history.products() == ["BTC-USD"]
    assert history.span("BTC-USD") == (FIRST, END)
    assert history.span("ETH-USD") is None


def test_the_same_again_changes_nothing(history: History) -> None:
    record(history, GIVEN)
    files = {path: path.stat().st_mtime_ns for path in history.root.rglob("*.parquet")}
    again = GIVEN.assign(volume=GIVEN["volume"].round(6))
    assert record(history, again) == Recorded(unchanged=30)
    assert {path: path.stat().st_mtime_ns for path in history.root.rglob("*.parquet")} == files
    assert history.read("BTC-USD", FIRST, END)["volume"].tolist() == GIVEN["volume"].tolist()


def test_other_values_are_refused_by_name_and_nothing_is_changed(history: History) -> None:
    record(history, GIVEN[:20])
    other = GIVEN.copy()
    other.loc[[3, 15], "close"] += 0.5
    with pytest.raises(HistoryError) as caught:
        record(history, other)
    assert str(caught.value) == (
        "BTC-USD: other values are stored for 2 of 30 minutes: 2024-01-31T23:53:00Z, 2024-02-01T00:05:00Z; "
        f"in the first close {GIVEN['close'][3]:.10g} (file:a.csv), now {other['close'][3]:.10g} "
        "(file:a.csv); --replace stores the new ones"
    )
    assert len(history.read("BTC-USD", FIRST, END)) == 20
    done = record(history, other, replace=True)
    assert done == Recorded(added=10, unchanged=18, replaced=2, days=("2024-01-31", "2024-02-01"))
    assert history.read("BTC-USD", FIRST, END)["close"].tolist() == other["close"].tolist()


def test_another_products_candles_are_refused(history: History) -> None:
    record(history, GIVEN[:20])
    foreign = GIVEN[20:].copy()
    foreign[list(NUMBERS)] /= 17
    with pytest.raises(
        HistoryError, match=r"BTC-USD, file:a\.csv: expected prices of one market, found a factor"
    ):
        record(history, foreign)
    # Also a month later, with nothing stored in between.
    later = foreign.assign(start_ns=foreign["start_ns"] + 33 * DAY_NS)
    with pytest.raises(HistoryError, match="a factor of 17"):
        record(history, later)
    earlier = foreign.assign(start_ns=foreign["start_ns"] - 33 * DAY_NS)
    with pytest.raises(HistoryError, match="a factor of 17"):
        record(history, earlier)
    assert record(history, later, any_price=True).added == 10


def test_holes_are_what_is_known_to_be_missing_and_what_remains(history: History) -> None:
    given = GIVEN.drop([5, 6, 9, 10, 11, 20])
    at = GIVEN["start_ns"].to_numpy()
    holes = pd.concat(
        [hole_minutes(at[[5, 6, 10, 11]], NO_CANDLE), hole_minutes(at[[20]], BAD_ROW, ["low above high"])]
    )
    assert record(history, given, holes=holes).holes == 5
    assert spans(history) == [
        (5, 7, NO_CANDLE, ""),
        (9, 10, NOT_ASKED, ""),
        (10, 12, NO_CANDLE, ""),
        (20, 21, BAD_ROW, "low above high"),
    ]
    # Of a bad row and of what nobody asked for, the exchange may still be asked.
    assert [(start - FIRST) // MINUTE_NS for start in history.unknown("BTC-USD", FIRST, END)] == [9, 20]
    # The exchange's answer stands over what a file was like, and a candle over both.
    assert record(history, given[:0], holes=hole_minutes(at[[20]], NO_CANDLE)).holes == 0
    assert spans(history)[-1] == (20, 21, NO_CANDLE, "")
    assert record(history, GIVEN.iloc[[5, 20]]).added == 2
    assert spans(history) == [(6, 7, NO_CANDLE, ""), (9, 10, NOT_ASKED, ""), (10, 12, NO_CANDLE, "")]


def test_a_file_that_is_no_month_of_history_is_named(history: History) -> None:
    record(history, GIVEN)
    path = history.root / "BTC-USD" / "2024-02.parquet"
    GIVEN.to_parquet(path)
    with pytest.raises(HistoryError, match=r"2024-02\.parquet: expected columns product, start_ns, open"):
        history.read("BTC-USD", FIRST, END)
    path.write_bytes(b"PAR1, and then nothing")
    with pytest.raises(HistoryError, match=r"2024-02\.parquet: cannot be read as Parquet: "):
        record(history, GIVEN)
    assert len(history.read("BTC-USD", FIRST, FIRST + 10 * MINUTE_NS)) == 10


def test_a_folder_that_cannot_be_written_is_named(history: History) -> None:
    history.root.parent.mkdir(exist_ok=True)
    history.root.write_text("no folder")
    with pytest.raises(HistoryError, match=r"\.lock: cannot be written: Not a directory"):
        record(history, GIVEN)


def test_a_days_version_is_of_its_values(history: History) -> None:
    record(history, GIVEN)
    found = history.read("BTC-USD", FIRST, END)
    assert day_version(found) == day_version(found.assign(source="rest"))
    assert day_version(found) != day_version(found.assign(volume=np.roll(found["volume"], 1)))
    assert day_version(found) != day_version(found[:-1])
