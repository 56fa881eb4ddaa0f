"""Which rows of a stream are new, changed, or published by an earlier run."""

from __future__ import annotations

from typing import Any

import numpy as np

from cryptovol_dagster.core.features.grid import FeatureGrid, Reason
from cryptovol_dagster.core.features.live_rows import PublishedRow
from cryptovol_dagster.core.features.published import TOLERANCE, PublishedGrid
from cryptovol_dagster.core.specs import NS

PRODUCTS = ("BTC-USD", "ETH-USD")


def grid(values: list[list[float]], *, start_ns: int = 0, **changes: Any) -> FeatureGrid:
    """One feature of two products: (products, bars)."""
    array = np.array([values], dtype=np.float64)
    shape = array.shape[1:]
    fields: dict[str, Any] = {
        "products": PRODUCTS,
        "names": ("ret_1",),
        "start_ns": start_ns,
        "bar_ns": NS,
        "values": array,
        "valid": np.ones(shape, dtype=np.bool_),
        "reason": np.full(shape, Reason.OK, dtype=np.int8),
    }
    return FeatureGrid(**fields | changes)


def update(published: PublishedGrid, found: FeatureGrid, wanted: Any = None) -> tuple[Any, Any, Any]:
    mask = np.ones(found.valid.shape, dtype=np.bool_) if wanted is None else np.array(wanted)
    cells, known, revision = published.update(found, mask)
    return cells.tolist(), known.tolist(), revision.tolist()


def test_new_rows_are_published_once_with_revision_0() -> None:
    published = PublishedGrid(1, NS)
    assert update(published, grid([[1, 2], [3, np.nan]]))[::2] == ([[True, True]] * 2, [[0, 0]] * 2)
    assert update(published, grid([[1, 2], [3, np.nan]]))[0] == [[False, False]] * 2
    # A third bar is new; the others are as they were.
    assert update(published, grid([[1, 2, 5], [3, np.nan, 6]]))[0] == [[False, False, True]] * 2


def test_a_changed_row_gets_the_next_revision_and_rounding_is_no_change() -> None:
    published = PublishedGrid(1, NS)
    update(published, grid([[1.0, 2.0], [3.0, 4.0]]))
    rounded = 1.0 + TOLERANCE / 2
    cells, known, revision = update(published, grid([[rounded, 2.5], [3.0, np.nan]]))
    assert cells == [[False, True], [False, True]]
    assert not np.any(known)
    assert revision == [[0, 1], [0, 1]]
    unfit = grid([[rounded, 2.5], [3.0, np.nan]], valid=np.array([[True, True], [False, True]]))
    assert update(published, unfit)[0] == [[False, False], [True, False]]


def test_only_wanted_rows_are_published() -> None:
    published = PublishedGrid(1, NS)
    assert update(published, grid([[1], [2]]), [[True], [False]])[0] == [[True], [False]]
    assert update(published, grid([[1], [2]]))[0] == [[False], [True]]


def test_rows_of_an_earlier_run_are_known_or_revised() -> None:
    earlier = [
        PublishedRow("BTC-USD", NS, 4, True, Reason.OK, np.array([1.0])),
        PublishedRow("ETH-USD", NS, 7, True, Reason.OK, np.array([99.0])),
    ]
    published = PublishedGrid(1, NS, earlier)
    cells, known, revision = update(published, grid([[1.0], [2.0]]))
    assert cells == [[True], [True]]
    assert known == [[True], [False]]
    assert revision == [[4], [8]]
    # They are compared once; then they count as published by this run.
    assert update(published, grid([[1.0], [2.0]]))[0] == [[False], [False]]


def test_another_recording_continues_the_revisions() -> None:
    published = PublishedGrid(1, NS)
    update(published, grid([[1.0], [2.0]]))
    update(published, grid([[1.5], [2.0]]))
    published.restart()
    assert update(published, grid([[1.0], [2.0]]))[2] == [[2], [2]]


def test_final_rows_are_dropped() -> None:
    published = PublishedGrid(1, NS)
    update(published, grid([[1.0, 2.0], [3.0, 4.0]]))
    published.forget_before(NS)
    assert update(published, grid([[9.0], [4.0]], start_ns=NS))[2] == [[1], [0]]
