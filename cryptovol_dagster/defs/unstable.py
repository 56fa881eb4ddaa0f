"""The one list of Dagster features in beta or preview that this package leans on, with the reason for each.

Their warnings are silenced while the code location is built, and only theirs: a test turns every other of
that kind into an error, and fails when an entry here is no longer needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: message (regular expression, from its start) → why the feature is used.
ACCEPTED = {
    r"Parameter `backfill_policy` of function `asset`": "a range of hours in one run, in order",
    r"Parameter `allow_nonexistent_upstream_partitions`": "look-back at the first hours of the data",
    r"Specifying a partitions_def on an AssetCheckSpec": "a check knows which hours it is about",
}


@contextmanager
def accepted_warnings() -> Iterator[None]:
    """Silence the warnings of the listed features."""
    with warnings.catch_warnings():
        for message in ACCEPTED:
            warnings.filterwarnings("ignore", message=message)
        yield
