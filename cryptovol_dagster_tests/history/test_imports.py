"""Imports from files and from the exchange: what is asked for, what is stored, what remains a hole."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster.core.market.candle_checks import COLUMNS, MINUTE_NS, NUMBERS, CandleError
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.history.api import PAGE_MINUTES, CandleApi, CandleApiError
from cryptovol_dagster.history.imports import (
    SETTLED_NS,
    Choices,
    Imported,
    import_file,
    import_span,
    pages,
)
from cryptovol_dagster.history.store import BAD_ROW, NO_CANDLE, History, HistoryError
from cryptovol_dagster_tests.candle_server import CandleServer, Fault, made_candles, serving_candles
from ingestor.settings.sections import HistorySettings

FIRST = pd.Timestamp("2024-01-31T12:00", tz="UTC").value
MINUTES = 1_000
END = FIRST + MINUTES * MINUTE_NS
NOW = END + 1_440 * MINUTE_NS
#: What the exchange has: three stretches in which nothing was traded, one as long as a page and more.
ABSENT = np.isin(np.arange(MINUTES), [0, 17, 18, *range(400, 400 + PAGE_MINUTES + 50), 999])
TRUTH = made_candles(FIRST, MINUTES)[~ABSENT].reset_index(drop=True)


@pytest.fixture(scope="module")
def shared() -> Iterator[CandleServer]:
    with serving_candles({"BTC-USD": TRUTH}) as server:
        yield server


@pytest.fixture
def server(shared: CandleServer) -> CandleServer:
    shared.asked.clear()
    shared.faults.clear()
    shared.candles["BTC-USD"] = TRUTH
    return shared


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history")


def ask(
    history: History, server: CandleServer, end_ns: int = END, now_ns: int = NOW, **choices: bool
) -> list[Imported]:
    asked = HistorySettings(url=server.url, requests_per_s=1_000, tries=2)
    with CandleApi(asked, sleep=lambda wait_s: None) as api:
        span = import_span(
            history, api, "BTC-USD", FIRST, end_ns, clock_ns=lambda: now_ns, choices=Choices(**choices)
        )
        return [part for _, _, part in span]


def stored(history: History) -> pd.DataFrame:
    return history.read("BTC-USD", FIRST, END)


def assert_is_the_truth(history: History) -> None:
    pd.testing.assert_frame_equal(stored(history)[["start_ns", *NUMBERS]], TRUTH[["start_ns", *NUMBERS]])
    holes = history.holes("BTC-USD", FIRST, END)
    assert set(holes["kind"]) == {NO_CANDLE}
    assert int((holes["end_ns"] - holes["start_ns"]).sum()) == MINUTE_NS * int(ABSENT.sum())


def test_the_result_equals_what_the_exchange_has_holes_included(
    history: History, server: CandleServer
) -> None:
    parts = ask(history, server)
    assert_is_the_truth(history)
    assert stored(history)["source"].unique().tolist() == ["rest"]
    assert len(server.asked) == len(parts) == -(-MINUTES // PAGE_MINUTES)
    assert [end - start for _, start, end in server.asked[:-1]] == [(PAGE_MINUTES - 1) * 60] * 3
    # What is stored or known to be a hole is not asked for again.
    assert ask(history, server) == []
    assert len(server.asked) == len(parts)


def test_only_the_rest_is_asked_for(history: History, server: CandleServer, tmp_path: Path) -> None:
    file = tmp_path / "some.parquet"
    TRUTH[100:300].assign(product="BTC-USD").to_parquet(file)
    import_file(history, file, now_ns=NOW)
    known = stored(history)
    ask(history, server)
    assert_is_the_truth(history)
    asked = [
        ((start * NS - FIRST) // MINUTE_NS, (end * NS - FIRST) // MINUTE_NS) for _, start, end in server.asked
    ]
    begin, end = ((known["start_ns"].iloc[at] - FIRST) // MINUTE_NS for at in (0, -1))
    assert asked[0] == (0, begin - 1)
    assert asked[1][0] == end + 1
    assert stored(history)["source"].value_counts().to_dict() == {
        "rest": len(TRUTH) - 200,
        "file:some.parquet": 200,
    }


def test_an_import_that_breaks_off_goes_on_where_it_was(history: History, server: CandleServer) -> None:
    server.faults = [Fault(), Fault(), Fault(status=500), Fault(status=500)]
    with pytest.raises(CandleApiError, match="it answered 500; given up after 2 tries"):
        ask(history, server)
    kept = len(stored(history))
    assert kept == int((~ABSENT[: 2 * PAGE_MINUTES]).sum())
    before = len(server.asked)
    ask(history, server)
    assert_is_the_truth(history)
    assert server.asked[before][1] * NS == FIRST + 2 * PAGE_MINUTES * MINUTE_NS
    assert len(server.asked) == before + 2


def test_minutes_that_are_not_long_over_are_neither_asked_for_nor_holes(
    history: History, server: CandleServer
) -> None:
    now_ns = FIRST + 30 * MINUTE_NS + SETTLED_NS + MINUTE_NS // 3
    ask(history, server, now_ns=now_ns)
    assert server.asked == [("BTC-USD", FIRST // NS, FIRST // NS + 29 * 60)]
    assert history.unknown("BTC-USD", FIRST, FIRST + 31 * MINUTE_NS).tolist() == [FIRST + 30 * MINUTE_NS]


def test_an_impossible_candle_of_the_exchange_is_refused_or_a_hole(
    history: History, server: CandleServer
) -> None:
    spoilt = TRUTH.copy()
    spoilt.loc[3, "low"] = 10 * spoilt.loc[3, "high"]
    server.candles["BTC-USD"] = spoilt
    with pytest.raises(
        CandleError, match="BTC-USD candles of the exchange: expected possible candles, found 1 of"
    ):
        ask(history, server)
    assert stored(history).empty
    ask(history, server, skip_bad=True)
    bad = history.holes("BTC-USD", FIRST, END)
    bad = bad.loc[bad["kind"] == BAD_ROW]
    assert bad[["start_ns", "detail"]].to_numpy().tolist() == [[spoilt.loc[3, "start_ns"], "low above high"]]
    # A bad row is no answer: it is asked for again, and the candle takes the hole's place.
    server.candles["BTC-USD"] = TRUTH
    ask(history, server)
    assert_is_the_truth(history)


def test_other_values_of_the_exchange_are_taken_when_asked_for(
    history: History, server: CandleServer, tmp_path: Path
) -> None:
    file = tmp_path / "other.csv"
    TRUTH[:50:2].assign(product="BTC-USD", volume=1.0).to_csv(file, index=False)
    import_file(history, file, now_ns=NOW)
    with pytest.raises(
        HistoryError, match=r"other values are stored for \d+ of \d+ minutes: .* --replace stores"
    ):
        ask(history, server)
    ask(history, server, replace=True)
    assert_is_the_truth(history)


@given(st.lists(st.integers(0, 3_000), unique=True, max_size=60), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_pages_cover_every_minute_once_and_no_more_than_a_page(at: list[int], page_minutes: int) -> None:
    starts = np.array(sorted(at), dtype=np.int64) * MINUTE_NS
    cut = list(pages(starts, page_minutes))
    inside = [[begin <= start < end for start in starts.tolist()] for begin, end in cut]
    assert (
        np.array(inside, dtype=int).reshape(len(cut), starts.size).sum(axis=0).tolist() == [1] * starts.size
    )
    assert all(0 < end - begin <= page_minutes * MINUTE_NS for begin, end in cut)
    assert all({begin, end - MINUTE_NS} <= set(starts.tolist()) for begin, end in cut)


def test_csv_plain_and_gz_and_parquet_say_the_same(tmp_path: Path) -> None:
    table = TRUTH[:40].assign(product=["BTC-USD"] * 20 + ["ETH-USD"] * 20).sample(frac=1, random_state=1)
    table = table.assign(start_ns=pd.to_datetime(table["start_ns"], utc=True)).rename(
        columns={"start_ns": "time"}
    )
    table.to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    table.to_parquet(tmp_path / "c.dat")
    found = []
    for name in ("a.csv", "b.csv.gz", "c.dat"):
        history = History(tmp_path / name.replace(".", "_"))
        done = import_file(history, tmp_path / name, now_ns=NOW)
        assert {product: part.added for product, part in done.recorded.items()} == {
            "BTC-USD": 20,
            "ETH-USD": 20,
        }
        found.append(history.read_products(["BTC-USD", "ETH-USD"], FIRST, END)[list(COLUMNS)])
    pd.testing.assert_frame_equal(found[0], found[1])
    pd.testing.assert_frame_equal(found[0], found[2])


@pytest.mark.parametrize(
    ("content", "file_format", "says"),
    [
        (None, None, "x.csv: cannot be read: No such file or directory"),
        (b"", None, "x.csv: cannot be read as CSV or Parquet: Empty CSV file"),
        (
            b"a,b\n1,2,3\n",
            None,
            "x.csv: cannot be read as CSV or Parquet: CSV parse error: Expected 2 columns",
        ),
        (b"PAR1 and nothing more", None, "x.csv: cannot be read as CSV or Parquet: "),
        (b"a,b\n1,2\n", "parquet", "x.csv: cannot be read as parquet: "),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, history: History, content: bytes | None, file_format, says: str
) -> None:
    path = tmp_path / "x.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CandleError) as caught:
        import_file(history, path, now_ns=NOW, file_format=file_format)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(says)
    assert not history.root.exists()


def test_impossible_rows_of_a_file_become_holes(tmp_path: Path, history: History) -> None:
    table = TRUTH[:40].assign(product="BTC-USD")
    table.loc[7, "close"] = np.nan
    table.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(
        CandleError, match=r"a\.csv: expected possible candles, found 1 of 40 .*: row 8 \(BTC-USD"
    ):
        import_file(history, tmp_path / "a.csv", now_ns=NOW)
    done = import_file(history, tmp_path / "a.csv", now_ns=NOW, choices=Choices(skip_bad=True))
    assert (done.recorded["BTC-USD"].added, done.recorded["BTC-USD"].holes) == (39, 1)
    assert set(history.holes("BTC-USD", FIRST, END)["detail"]) == {"", "not a number"}


def test_a_published_year_and_nine_months_is_imported_whole(shared_data: Path, history: History) -> None:
    done = import_file(history, shared_data / "bars" / "coinbase_btc_usd_1m.parquet", now_ns=2 * 10**18)
    assert done.recorded["BTC-USD"].added == 915_600
    assert len(done.recorded["BTC-USD"].days) == 636
    found = history.holes("BTC-USD", *(history.span("BTC-USD") or (0, 0)))
    assert len(found) == 13
    assert int((found["end_ns"] - found["start_ns"]).sum()) // MINUTE_NS == 240
