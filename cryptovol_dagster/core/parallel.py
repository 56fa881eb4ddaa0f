"""The same work on several things, on all cores of the machine.

For work that spends its time in numpy, which releases the interpreter's lock while it sorts, takes or sums.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def on_all_cores(work: Callable[[T], R], things: Iterable[T]) -> list[R]:
    """Do the work on each thing, and return the results in the order of the things.

    Args:
        work: depends on its thing alone, so that the results are those of a loop.
        things: to work on.

    Raises:
        Exception: what the first thing that failed, by order, raised.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, things))
