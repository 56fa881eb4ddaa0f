"""The archive of the scores: ``ticks.scores`` into raw storage, as the feed's own topics.

The scorer runs it in a thread, beside the recorder's archive on the same storage or without one. An hour of
scores closes by the scorer's own records, so a scorer that does not run never holds back an hour of the feed.
"""

from __future__ import annotations

from collections.abc import Callable

from ingestor.archive.closing import REVISED_AFTER_S
from ingestor.archive.collection import SCORES
from ingestor.archive.consumer import Archive
from ingestor.archive.layout import ClosedHour
from ingestor.kafka.broker import Broker
from ingestor.settings.sections import StorageSettings


def scores_archive(
    broker: Broker,
    storage: StorageSettings,
    *,
    closed_after_s: float,
    revised_after_s: float = REVISED_AFTER_S,
    on_hour_closed: Callable[[ClosedHour], None] | None = None,
) -> Archive:
    """Return an archive of ``ticks.scores``, not started.

    Args:
        broker: where to read.
        storage: where to write, and how often.
        closed_after_s: an hour closes when every partition is scored beyond its end by this.
        revised_after_s: one in which rows landed late closes again when nothing more has for this long.
        on_hour_closed: called from the archive's thread with each hour that it closed, or closed again.
    """
    return Archive(
        broker,
        storage,
        closed_after_s=closed_after_s,
        revised_after_s=revised_after_s,
        collection=SCORES,
        on_hour_closed=on_hour_closed,
    )
