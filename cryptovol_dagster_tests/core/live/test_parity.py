"""Published rows compared with computed ones, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.core.live.parity import TOLERANCE, compare


def _live(*rows: tuple) -> pd.DataFrame:
    columns = pd.Index(["product_id", "bar_end_ns", "reason", "row_hash", "probability"])
    return pd.DataFrame(list(rows), columns=columns).astype({"probability": float, "bar_end_ns": "int64"})


def _lake(*rows: tuple) -> pd.DataFrame:
    return _live(*rows).assign(without="")


def test_each_part_of_a_row_is_compared_and_counted() -> None:
    live = _live(
        ("BTC-USD", 1, "ok", "a", 0.1),
        ("BTC-USD", 2, "ok", "b", 0.2),
        ("BTC-USD", 3, "ok", "c", 0.3),
        ("BTC-USD", 4, "cross_incomplete", None, None),
        ("BTC-USD", 5, "ok", None, 0.5),  # published without others of the reference set: no hash
        ("BTC-USD", 6, "ok", "f", 0.6 + TOLERANCE / 2),
    )
    lake = _lake(
        ("BTC-USD", 1, "ok", "a", 0.1),
        ("BTC-USD", 2, "ok", "x", 0.2),
        ("BTC-USD", 3, "ok", "c", 0.3 + 2 * TOLERANCE),
        ("BTC-USD", 4, "ok", "d", np.nan),
        ("BTC-USD", 5, "ok", "e", 0.5),
        ("BTC-USD", 6, "ok", "f", 0.6),
    )
    found = compare(live, lake)
    assert (found.rows, found.equal, found.differing, found.missing) == (6, 3, 3, 0)
    assert found.differing_by == {"reason": 1, "hash": 1, "probability": 1}
    assert found.reasons == {"cross_incomplete for ok": 1}
    assert (found.hashes, found.probabilities) == (4, 5)
    assert found.max_difference == pytest.approx(2 * TOLERANCE)
    assert [one["by"] for one in found.examples] == [["hash"], ["probability"], ["reason"]]
    assert not found.holds


def test_a_reason_of_the_model_is_not_one_of_the_row() -> None:
    live = _live(("BTC-USD", 1, "no_model", "a", None), ("BTC-USD", 2, "other_features", None, None))
    lake = _lake(("BTC-USD", 1, "ok", "a", None), ("BTC-USD", 2, "ok", "b", None))
    assert compare(live, lake).holds
    unlike = compare(live, lake.assign(row_hash="z"))
    assert unlike.differing_by == {"reason": 0, "hash": 1, "probability": 0}


def test_missing_rows_are_told_apart_by_whether_they_may_be_scored() -> None:
    live = _live(
        ("BTC-USD", 1, "ok", "a", 0.1),
        ("ETH-USD", 2, "not_heard", None, None),
        ("BTC-USD", 5, "ok", "e", 0.5),
        ("DOGE-USD", 5, "ok", "e", 0.5),
    )
    lake = _lake(
        ("BTC-USD", 0, "ok", "z", None),  # before the first published bar
        ("BTC-USD", 1, "ok", "a", 0.1),
        ("ETH-USD", 2, "ok", "b", None),
        ("BTC-USD", 3, "in_gap", "c", None),
        ("BTC-USD", 4, "ok", "d", None),
        ("BTC-USD", 5, "ok", "e", 0.5),
        ("BTC-USD", 6, "ok", "f", None),
    )
    found = compare(live, lake)
    assert (found.equal, found.differing, found.missing, found.missing_unscorable) == (2, 0, 2, 1)
    assert (found.not_in_lake, found.outside) == (1, 2)
    assert found.missing_by_reason == {"in_gap": 1, "ok": 2}
    assert found.products["ETH-USD"]["missing"] == found.products["DOGE-USD"]["not_in_lake"] == 1
    assert [(one["product"], one["outcome"]) for one in found.examples] == [
        ("ETH-USD", "missing"),
        ("BTC-USD", "missing"),
        ("DOGE-USD", "not_in_lake"),
    ]
    # Rows that neither side can score do not break parity.
    calm = compare(
        _live(("A", 1, "ok", "a", 0.1), ("A", 3, "ok", "a", 0.1)),
        _lake(("A", 1, "ok", "a", 0.1), ("A", 2, "in_gap", "b", None), ("A", 3, "ok", "a", 0.1)),
    )
    assert (calm.missing_unscorable, calm.holds) == (1, True)


def test_a_probability_that_could_not_be_computed_again_is_counted_and_not_compared() -> None:
    live = _live(("BTC-USD", 1, "ok", "a", 0.1))
    lake = _lake(("BTC-USD", 1, "ok", "a", None)).assign(without="the file is not stored")
    found = compare(live, lake)
    assert (found.probabilities, found.not_compared) == (0, {"the file is not stored": 1})
    assert (found.max_difference, found.equal) == (None, 1)


def test_nothing_published_leaves_every_row_outside() -> None:
    found = compare(_live(), _lake(("BTC-USD", 1, "ok", "a", None)))
    assert (found.first, found.rows, found.outside, found.holds) == (None, 0, 1, True)
    assert found.products == {}
