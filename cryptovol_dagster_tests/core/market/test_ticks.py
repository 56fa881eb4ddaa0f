"""Cleaning, the columnar form and its lake form."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster.core.market.cleaning import (
    TickCleaner,
    TickCounts,
    clean_ticks,
    clean_trades,
    order_ticks,
)
from cryptovol_dagster.core.market.ticks import TICK_DTYPES, ColumnsError, TickColumns, TradeColumns
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster_tests.core.features import reference
from cryptovol_dagster_tests.core.market.builders import START_NS, random_ticks, ticks_of

LATE_NS = 2 * NS


def same(one: TickColumns, other: TickColumns) -> bool:
    """Equal row for row, with dictionaries resolved, NaN equal to NaN."""
    if len(one) != len(other):
        return False
    for name in TICK_DTYPES:
        left, right = getattr(one, name), getattr(other, name)
        if name in ("product", "connection"):
            dictionary = name + "s"
            left = np.array(getattr(one, dictionary), dtype=object)[left]
            right = np.array(getattr(other, dictionary), dtype=object)[right]
        if not np.array_equal(left, right, equal_nan=left.dtype.kind == "f"):
            return False
    return True


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_cleaning_equals_the_reference_row_for_row(seed: int) -> None:
    ticks = random_ticks(seed, seconds=120, per_second=2, n_products=3)
    cleaned = clean_ticks(ticks, LATE_NS)
    rows, counts = reference.clean(reference.rows_of(ticks), LATE_NS)
    assert repr(reference.rows_of(cleaned.ticks)) == repr(rows)
    assert {name: getattr(cleaned.counts, name) for name in counts} == counts
    assert cleaned.counts.read == len(ticks) == sum(counts.values())


@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(0, 400), max_size=6))
@settings(max_examples=60, deadline=None)
def test_cleaning_in_chunks_equals_cleaning_at_once(seed: int, cuts: list[int]) -> None:
    ticks = random_ticks(seed, seconds=150, per_second=2)
    cleaner = TickCleaner(LATE_NS, horizon_ns=200 * NS)
    edges = [0, *sorted(min(cut, len(ticks)) for cut in cuts), len(ticks)]
    parts = [cleaner.add(ticks.take(slice(a, b))) for a, b in pairwise(edges)]
    whole = clean_ticks(ticks, LATE_NS)
    assert same(order_ticks(TickColumns.concat([part.ticks for part in parts])), whole.ticks)
    assert sum((part.counts for part in parts), TickCounts()) == whole.counts


def test_a_repeat_beyond_the_horizon_is_left_out_as_late() -> None:
    cleaner = TickCleaner(LATE_NS, horizon_ns=10 * NS)
    rows = [{"sequence_num": k, "event_time_ns": START_NS + k * NS} for k in range(60)]
    assert cleaner.add(ticks_of(rows)).counts.kept == 60
    again = cleaner.add(ticks_of(rows)).counts
    assert (again.kept, again.late, again.duplicates) == (0, 49, 11)


def test_a_cleaner_with_too_short_a_horizon_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter than the disorder"):
        TickCleaner(LATE_NS, horizon_ns=NS)


@pytest.mark.parametrize(
    ("fault", "counter"),
    [
        ({"bid": np.nan}, "nan_quote"),
        ({"ask": np.inf}, "nan_quote"),
        ({"bid": -1.0}, "non_positive_quote"),
        ({"ask": 0.0, "bid": -0.0}, "non_positive_quote"),
        ({"bid": 100.2, "ask": 100.1}, "crossed_quote"),
    ],
)
def test_an_unusable_quote_is_left_out_and_counted(fault: dict[str, float], counter: str) -> None:
    ticks = ticks_of([{}, {**fault, "gap_before": True}, {"event_time_ns": START_NS + 1}])
    cleaned = clean_ticks(ticks, LATE_NS)
    assert cleaned.counts == TickCounts(read=3, kept=2, **{counter: 1})
    # The loss that the rejected row announced still lies before the next one.
    assert cleaned.ticks.gap_before.tolist() == [False, True]


def test_a_locked_quote_is_a_quote() -> None:
    assert clean_ticks(ticks_of([{"bid": 100.0, "ask": 100.0}]), LATE_NS).counts.kept == 1


def test_a_repeat_says_nothing_about_losses_or_connections() -> None:
    rows = [
        {"connection": 0, "sequence_num": 1},
        {"connection": 1, "sequence_num": 0, "event_time_ns": START_NS + 1},
        {"connection": 0, "sequence_num": 1, "gap_before": True},
        {"connection": 1, "sequence_num": 1, "event_time_ns": START_NS + 2},
    ]
    cleaned = clean_ticks(ticks_of(rows), LATE_NS)
    assert cleaned.counts.duplicates == 1
    assert cleaned.ticks.gap_before.tolist() == [False, True, False]


def test_a_connection_that_comes_back_is_still_searched_for_repeats() -> None:
    rows = [
        {"connection": 0, "sequence_num": 5},
        {"connection": 1, "sequence_num": 0},
        {"connection": 0, "sequence_num": 5},
    ]
    assert clean_ticks(ticks_of(rows), LATE_NS).counts.duplicates == 1


def test_entries_of_one_frame_are_not_repeats() -> None:
    rows = [
        {"sequence_num": 1, "event_index": e, "entry_index": n, "product": n} for e in (0, 1) for n in (0, 1)
    ]
    assert clean_ticks(ticks_of(rows), LATE_NS).counts.kept == 4


def test_no_ticks_are_no_trouble() -> None:
    cleaned = clean_ticks(TickColumns.empty(["BTC-USD"]), LATE_NS)
    assert (len(cleaned.ticks), cleaned.ticks.products) == (0, ("BTC-USD",))
    assert cleaned.counts == TickCounts()


def test_every_line_twice_counts_once(recordings) -> None:
    from ingestor.recordings import read_recording

    recording = read_recording(recordings / "faulty_every_line_twice.ndjson.gz")
    counts = clean_ticks(TickColumns.from_arrays(recording.ticks), LATE_NS).counts
    assert counts == TickCounts(read=7_156, kept=3_578, duplicates=3_578)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_the_lake_form_gives_the_same_rows_back(seed: int) -> None:
    ticks = random_ticks(seed, seconds=60)
    buffer = io.BytesIO()
    pq.write_table(ticks.to_table(), buffer)
    assert same(TickColumns.from_table(pq.read_table(io.BytesIO(buffer.getvalue()))), ticks)
    halves = [ticks.take(slice(None, 20)).to_table(), ticks.take(slice(20, None)).to_table()]
    assert same(TickColumns.from_table(pa.concat_tables(halves)), ticks)


def test_a_silent_product_keeps_its_place() -> None:
    ticks = ticks_of([{"product": 1}])
    read = TickColumns.from_table(ticks.to_table(), products=("SOL-USD", "ETH-USD", "BTC-USD"))
    assert (read.products, read.product.tolist()) == (("SOL-USD", "ETH-USD", "BTC-USD"), [1])
    with pytest.raises(ColumnsError, match="not requested: ETH-USD"):
        TickColumns.from_table(ticks.to_table(), products=("BTC-USD",))


def test_joining_unites_the_dictionaries() -> None:
    one = ticks_of([{"product": 0}], products=("A", "B"))
    other = ticks_of([{"product": 0, "event_time_ns": START_NS + 1}], products=("B", "C"))
    joined = TickColumns.concat([one, other])
    assert joined.products == ("A", "B", "C")
    assert joined.product.tolist() == [0, 1]
    with pytest.raises(ColumnsError, match="nothing to concatenate"):
        TickColumns.concat([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bid": [1.0, 2.0]}, "differ in length"),
        ({"product": [7]}, "points outside its 2 products"),
        ({"connection": [-1]}, "points outside its 1 connections"),
    ],
)
def test_columns_that_do_not_fit_are_refused(change: dict[str, list[float]], message: str) -> None:
    ticks = ticks_of([{}])
    columns = {name: getattr(ticks, name) for name in TickColumns.__dataclass_fields__}
    with pytest.raises(ColumnsError, match=message):
        TickColumns.from_arrays({**columns, **change})
    del columns["ask"]
    with pytest.raises(ColumnsError, match="missing: ask"):
        TickColumns.from_arrays(columns)


def trades_of(**columns: list) -> TradeColumns:
    n = len(columns["trade_id"])
    defaults = {
        "products": ("A", "B"),
        "product": [0] * n,
        "trade_time_ns": [START_NS] * n,
        "price": [100.0] * n,
        "size": [1.0] * n,
        "buy": [True] * n,
        "is_snapshot": [False] * n,
    }
    return TradeColumns.from_arrays({**defaults, **columns})


def test_trades_are_taken_once_and_snapshots_not_at_all() -> None:
    trades = trades_of(
        trade_id=[3, 2, 3, 3, 9],
        product=[0, 0, 0, 1, 0],
        is_snapshot=[False, False, False, False, True],
    )
    cleaned = clean_trades(trades)
    assert list(zip(cleaned.product.tolist(), cleaned.trade_id.tolist(), strict=True)) == [
        (0, 2),
        (0, 3),
        (1, 3),
    ]
    assert TradeColumns.from_table(cleaned.to_table(), products=("A", "B")).trade_id.tolist() == [2, 3, 3]
