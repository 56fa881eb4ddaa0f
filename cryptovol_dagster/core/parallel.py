"""Run one function on several items, on all cores of the machine.

For functions that spend their time in numpy, which releases the interpreter's lock while it computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def on_all_cores(work: Callable[[T], R], things: Iterable[T]) -> list[R]:
    """Call a function on each item in threads, and return the results in the order of the items.

    Args:
        work: the function; it depends on its item alone, so that the results are those of a loop.
        things: the items.

    Raises:
        Exception: the exception of the first failed item, in the order of the items.

    Examples:
        >>> on_all_cores(abs, [-3, 2, -1])
        [3, 2, 1]
        >>> on_all_cores(len, [])
        []
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, things))
