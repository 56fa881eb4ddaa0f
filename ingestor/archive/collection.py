"""Collections of topics: one archive stores the topics of one, and their hours close together.

The feed's topics are one collection, the scores another. They share raw storage and its rules, and nothing
else: not the consumer group, not the locks, not the records of closed hours.
"""

from __future__ import annotations

from dataclasses import dataclass

from ingestor.archive.layout import CLOSED, CLOSED_SCORES
from ingestor.envelope import EVENTS, SCORES_TOPIC, TICKS, TOPICS, TRADES
from ingestor.kafka.broker import ARCHIVE_GROUP, SCORES_ARCHIVE_GROUP


@dataclass(frozen=True)
class Collection:
    """Topics (without prefix) that are stored and closed together.

    Attributes:
        name: short name.
        topics: all of them.
        timed_by_market: those whose event times decide which hours there are.
        progress: the one with the records that state until when everything is stored.
        closed: folder of the records of closed hours.
        group: consumer group of its archives, without prefix.
        locks: folder below ``_tmp`` of the locks of its archives; empty for ``_tmp`` itself.
    """

    name: str
    topics: tuple[str, ...]
    timed_by_market: tuple[str, ...]
    progress: str
    closed: str
    group: str
    locks: str

    def hour(self, key: str) -> str:
        """Return the name of one of its hours in log lines."""
        return key if self == FEED else f"{key} of the {self.name}"


FEED = Collection(
    name="feed",
    topics=TOPICS,
    timed_by_market=(TICKS, TRADES),
    progress=EVENTS,
    closed=CLOSED,
    group=ARCHIVE_GROUP,
    locks="",
)
SCORES = Collection(
    name="scores",
    topics=(SCORES_TOPIC,),
    timed_by_market=(SCORES_TOPIC,),
    progress=SCORES_TOPIC,
    closed=CLOSED_SCORES,
    group=SCORES_ARCHIVE_GROUP,
    locks="scores",
)
COLLECTIONS = (FEED, SCORES)
#: Every topic that raw storage may contain.
ARCHIVED_TOPICS = tuple(topic for collection in COLLECTIONS for topic in collection.topics)
