"""The join of own rows: the rows of the assets, bit for bit, in whatever order the partitions arrive."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.features.row_hash import row_hashes
from cryptovol_dagster.core.live.join import JoinedBar, OwnRow, RowJoin
from cryptovol_dagster.core.samples import SPEC, bars
from cryptovol_dagster.core.specs import NS

PRODUCTS = ("BTC-USD", "ETH-USD")
PARTITIONS = {"BTC-USD": 0, "ETH-USD": 1, "SOL-USD": 2}
GRID = compute_features(bars(), SPEC)
FIRST = 1_200
N_OWN = 51
WAIT_NS = 10**9


def new_join() -> RowJoin:
    return RowJoin(SPEC, lateness_ns=2 * NS, partition_of=PARTITIONS.__getitem__, outputs=1)


def end_ns(bar: int) -> int:
    return GRID.start_ns + (bar + 1) * SPEC.bar_ns


def row(
    product: str, bar: int, revision: int = 0, *, of: str | None = None, provisional: bool = False
) -> OwnRow:
    """The own row of a bar of `GRID`; a product that is not in it has the values of product `of`."""
    k = GRID.products.index(of or product)
    return OwnRow(
        product=product,
        bar_end_ns=end_ns(bar),
        revision=revision,
        provisional=provisional,
        valid=bool(GRID.valid[k, bar]),
        reason=int(GRID.reason[k, bar]),
        values=GRID.values[:N_OWN, k, bar].copy(),
    )


def hashes_of(joined: list[JoinedBar]) -> dict[tuple[str, int], str]:
    found = {}
    for bar in joined:
        for own, digest in zip(bar.rows, row_hashes(bar.values), strict=True):
            found[own.product, bar.bar_end_ns] = digest
    return found


def expected(bar: int) -> dict[tuple[str, int], str]:
    digests = row_hashes(np.ascontiguousarray(GRID.values[:, :, bar].T))
    return {(product, end_ns(bar)): digest for product, digest in zip(GRID.products, digests, strict=True)}


@given(order=st.permutations([(product, bar) for product in PRODUCTS for bar in range(FIRST, FIRST + 4)]))
@settings(max_examples=40, deadline=None)
def test_whatever_the_order_each_row_is_that_of_the_assets(order: list[tuple[str, int]]) -> None:
    join, joined = new_join(), []
    for product, bar in order:
        join.add(row(product, bar), now_ns=0)
        joined += join.take(now_ns=0, wait_ns=WAIT_NS)
    assert all(bar.is_complete for bar in joined)
    wanted: dict[tuple[str, int], str] = {}
    for bar in range(FIRST, FIRST + 4):
        wanted |= expected(bar)
    assert hashes_of(joined) == wanted


def test_a_row_waits_for_the_set_and_is_then_returned_without_it_and_again_with_it() -> None:
    join = new_join()
    join.add(row("BTC-USD", FIRST), now_ns=0)
    assert join.take(now_ns=WAIT_NS - 1, wait_ns=WAIT_NS) == []
    (bar,) = join.take(now_ns=WAIT_NS, wait_ns=WAIT_NS)
    assert not bar.is_complete
    assert np.isnan(bar.values[0, N_OWN:]).all()
    assert join.take(now_ns=2 * WAIT_NS, wait_ns=WAIT_NS) == []
    join.add(row("ETH-USD", FIRST), now_ns=2 * WAIT_NS)
    (bar,) = join.take(now_ns=2 * WAIT_NS, wait_ns=WAIT_NS)
    assert bar.is_complete
    assert hashes_of([bar]) == expected(FIRST)


def test_a_closed_partition_without_a_row_settles_a_bar() -> None:
    join = new_join()
    join.add(row("BTC-USD", FIRST), now_ns=0)
    join.close(1, 1, end_ns(FIRST) - SPEC.bar_ns)
    assert join.take(now_ns=0, wait_ns=WAIT_NS) == []
    join.close(1, 1, end_ns(FIRST))
    (bar,) = join.take(now_ns=0, wait_ns=WAIT_NS)
    assert bar.is_complete
    assert [own.product for own in bar.rows] == ["BTC-USD"]


def test_a_bar_returned_without_the_set_is_complete_once_its_partition_closes() -> None:
    join = new_join()
    join.add(row("BTC-USD", FIRST), now_ns=0)
    assert [bar.is_complete for bar in join.take(now_ns=WAIT_NS, wait_ns=WAIT_NS)] == [False]
    join.close(1, 1, end_ns(FIRST))
    assert [bar.is_complete for bar in join.take(now_ns=WAIT_NS, wait_ns=WAIT_NS)] == [True]
    assert join.take(now_ns=WAIT_NS, wait_ns=WAIT_NS) == []


def test_with_other_numbers_of_partitions_each_output_must_report() -> None:
    join = RowJoin(SPEC, lateness_ns=2 * NS, partition_of=PARTITIONS.__getitem__, outputs=2)
    join.add(row("BTC-USD", FIRST), now_ns=0)
    assert join.close(1, 0, end_ns(FIRST)) == 0
    assert join.take(now_ns=0, wait_ns=WAIT_NS) == []
    assert join.close(1, 1, end_ns(FIRST)) == end_ns(FIRST)
    assert len(join.take(now_ns=0, wait_ns=WAIT_NS)) == 1


def test_a_revision_of_the_set_returns_every_product_of_the_bar_and_no_other_bar() -> None:
    join = new_join()
    for bar in (FIRST, FIRST + 1):
        for product in PRODUCTS:
            join.add(row(product, bar), now_ns=0)
        join.add(row("SOL-USD", bar, of="BTC-USD"), now_ns=0)
    join.take(now_ns=0, wait_ns=WAIT_NS)
    join.add(row("ETH-USD", FIRST, revision=1, of="BTC-USD"), now_ns=0)
    (bar,) = join.take(now_ns=0, wait_ns=WAIT_NS)
    assert bar.bar_end_ns == end_ns(FIRST)
    assert [own.product for own in bar.rows] == ["BTC-USD", "ETH-USD", "SOL-USD"]
    join.add(row("SOL-USD", FIRST, revision=1, of="ETH-USD"), now_ns=0)
    (bar,) = join.take(now_ns=0, wait_ns=WAIT_NS)
    assert [own.product for own in bar.rows] == ["SOL-USD"]


def test_an_earlier_revision_that_comes_later_is_left_out() -> None:
    join = new_join()
    for product in PRODUCTS:
        join.add(row(product, FIRST, revision=1), now_ns=0)
    join.take(now_ns=0, wait_ns=WAIT_NS)
    join.add(row("BTC-USD", FIRST, revision=0), now_ns=0)
    assert join.take(now_ns=0, wait_ns=WAIT_NS) == []


def test_rows_that_cannot_change_are_dropped_and_those_of_a_silent_product_kept() -> None:
    join = new_join()
    for bar in range(FIRST, FIRST + 100):
        join.add(row("BTC-USD", bar), now_ns=0)
        # Silent after ten bars: its later rows may all be revised.
        join.add(row("ETH-USD", bar, provisional=bar >= FIRST + 10), now_ns=0)
    join.take(now_ns=0, wait_ns=WAIT_NS)
    join.forget()
    reach_bars = -(-(end_ns(FIRST + 9) - join.open_since_ns("ETH-USD")) // SPEC.bar_ns)
    assert join.n_rows == 200 - 2 * max(0, 9 - reach_bars)
    for bar in range(FIRST + 10, FIRST + 100):
        join.add(row("ETH-USD", bar, revision=1), now_ns=0)
    join.take(now_ns=0, wait_ns=WAIT_NS)
    join.forget()
    assert join.open_since_ns("ETH-USD") > end_ns(FIRST + 50)
    assert join.n_rows < 80


def test_how_far_a_partition_was_returned_stops_before_waiting_rows() -> None:
    join = new_join()
    assert join.returned_until_ns(0) == 0
    join.add(row("BTC-USD", FIRST), now_ns=0)
    join.close(0, 0, end_ns(FIRST + 5))
    assert join.returned_until_ns(0) == end_ns(FIRST - 1)
    join.add(row("ETH-USD", FIRST), now_ns=0)
    join.take(now_ns=0, wait_ns=WAIT_NS)
    assert join.returned_until_ns(0) == end_ns(FIRST + 5)


def test_a_closing_does_not_settle_bars_whose_rows_were_lost() -> None:
    join = new_join()
    join.lose(1)
    join.add(row("BTC-USD", FIRST), now_ns=0)
    join.add(row("BTC-USD", FIRST + 1), now_ns=0)
    join.close(1, 1, end_ns(FIRST))
    join.close(1, 1, end_ns(FIRST + 1))
    joined = join.take(now_ns=WAIT_NS, wait_ns=WAIT_NS)
    assert [(bar.bar_end_ns, bar.is_complete) for bar in joined] == [
        (end_ns(FIRST), False),
        (end_ns(FIRST + 1), True),
    ]


def test_another_recording_drops_the_rows_of_the_former_one() -> None:
    join = new_join()
    for product in PRODUCTS:
        join.add(row(product, FIRST + 2_000), now_ns=0)
        join.add(row(product, FIRST), now_ns=0)
    joined = join.take(now_ns=0, wait_ns=WAIT_NS)
    assert [bar.bar_end_ns for bar in joined] == [end_ns(FIRST)]
    assert hashes_of(joined) == expected(FIRST)
    assert join.n_rows == 2
