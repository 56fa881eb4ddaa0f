"""Work on all cores is that of a loop."""

from __future__ import annotations

import time

import pytest

from cryptovol_dagster.core.parallel import on_all_cores


def test_results_come_in_the_order_of_the_things() -> None:
    def later_first(number: int) -> int:
        time.sleep(0.02 / (number + 1))
        return number**2

    assert on_all_cores(later_first, range(6)) == [0, 1, 4, 9, 16, 25]
    assert on_all_cores(later_first, []) == []


def test_the_first_failure_by_order_is_raised() -> None:
    def fails(number: int) -> int:
        if number:
            raise ValueError(f"thing {number}")
        return number

    with pytest.raises(ValueError, match="thing 1"):
        on_all_cores(fails, range(4))
