"""Retry steps that meet a passing fault of the file system, and no other step.

Dagster's own retry policy retries whatever failed, a corrupt file or a refused partition too. Those would
fail each time, and people would hear of them later.
"""

# No `from __future__ import annotations` here: Dagster reads annotations.

import errno
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import dagster as dg

P = ParamSpec("P")
R = TypeVar("R")

MAX_RETRIES = 3
WAIT_S = 5.0
#: Errors of a network file system that is away for a moment. A corrupt file has no such number.
PASSING = frozenset(
    {errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTDOWN}
)


def retried(step: Callable[P, R]) -> Callable[P, R]:
    """Request a retry of a step after a pause, if its error or a cause of it is temporary."""

    @functools.wraps(step)
    def tried(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return step(*args, **kwargs)
        except Exception as error:
            if is_passing(error):
                raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=WAIT_S) from error
            raise

    return tried


def is_passing(error: BaseException | None) -> bool:
    """Return whether an error, or a cause of it, passes by itself."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in PASSING:
            return True
        error = error.__cause__
    return False
