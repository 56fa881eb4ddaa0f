"""Log of each topic: requested again and again, beside publisher and archive.

A topic that is deleted and recreated, or a broker that lost its data, assigns the same offsets again, and
clients may go on without an error. An offset certainly belongs to a log only if the log's id was requested
after the offset was seen, and was still the same: `LogState.asked_at_s` is the time up to which that holds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ingestor.envelope import TOPICS
from ingestor.kafka.broker import Broker, BrokerError

LOG = logging.getLogger(__name__)

#: Interval of requests of a quiet recorder, and shortest time after an answer.
_ASK_EVERY_S = 2.0
_ASK_AT_EARLIEST_S = 0.2
_ANSWER_WITHIN_S = 3.0
#: A deleted topic may be recreated by its owner with other settings: wait for that.
_RECREATE_AFTER_S = 3.0


@dataclass(frozen=True)
class Recreation:
    """A topic got another log.

    Attributes:
        topic: without prefix.
        old_log: id of the deleted log.
        new_log: id of its successor.
    """

    topic: str
    old_log: str
    new_log: str


@dataclass(frozen=True)
class LogState:
    """The last answer.

    Attributes:
        asked_at_s: time of the request (monotonic clock).
        ids: log id by topic.
        recreations: every change since the watch began, oldest first.
        ends: for each recreated topic, by partition, the offset after its last record; asked for
            after `asked_at_s`.
        other_broker: why the logs cannot be used any more: another cluster answers at the address. Empty
            while that is not so.
    """

    asked_at_s: float
    ids: Mapping[str, str]
    recreations: tuple[Recreation, ...] = ()
    ends: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    other_broker: str = ""


class LogWatch:
    """Asks a broker in its own thread. A context manager; `state` may be read from any thread.

    The embedded broker cannot lose a log without ending: there, one answer holds for ever.

    Args:
        broker: whom to ask.
        topics: of which, without prefix; a missing one is recreated.

    Raises:
        BrokerError: the broker does not answer, or has no topic ids.
    """

    def __init__(self, broker: Broker, topics: Sequence[str] = TOPICS) -> None:
        self._broker = broker
        self._topics = topics
        self.state = LogState(
            float("inf") if broker.is_embedded else time.monotonic(), broker.log_ids(topics)
        )
        self._asked = threading.Event()
        self._stop = threading.Event()
        self._missing_since_s: float | None = None
        self._logged = ""
        self._when_another_answers: list[Callable[[], object]] = []
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LogWatch:
        if not self._broker.is_embedded:
            self._thread = threading.Thread(target=self._run, name="log-watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._asked.set()
        if self._thread is not None:
            self._thread.join()

    def when_another_broker_answers(self, then: Callable[[], object]) -> None:
        """Call `then`, from the watch's thread, once `state.other_broker` is set."""
        self._when_another_answers.append(then)

    def ask(self) -> None:
        """Ask again soon; returns at once."""
        self._asked.set()

    def _run(self) -> None:
        while not self._stop.wait(_ASK_AT_EARLIEST_S):
            self._asked.wait(_ASK_EVERY_S)
            self._asked.clear()
            if self._stop.is_set():
                return
            try:
                self._refresh()
            except BrokerError as error:
                self._log(str(error))

    def _refresh(self) -> None:
        asked_at_s = time.monotonic()
        ids = self._broker.log_ids(self._topics, timeout_s=_ANSWER_WITHIN_S)
        if (
            ids != self.state.ids
            and (cluster_id := self._broker.current_cluster_id()) != self._broker.cluster_id
        ):
            self._end_with(cluster_id)
            return
        if len(ids) < len(self._topics):
            self._recreate([topic for topic in self._topics if topic not in ids], asked_at_s)
            return
        self._missing_since_s = None
        self._logged = ""
        recreations = tuple(
            Recreation(topic, old, ids[topic]) for topic, old in self.state.ids.items() if ids[topic] != old
        )
        if recreations:
            # Cached metadata of the old logs would spoil every further request.
            self._broker.renew_clients()
        for each in recreations:
            LOG.warning(
                "topic %s was recreated: its log was %s and is %s; records of the old log that were not "
                "stored are lost",
                each.topic,
                each.old_log,
                each.new_log,
            )
        so_far = (*self.state.recreations, *recreations)
        self.state = LogState(asked_at_s, ids, so_far, self._ends({each.topic for each in so_far}))

    def _end_with(self, cluster_id: str) -> None:
        """Record that another cluster answers: clients of the old one cannot be used any more.

        Clients cached leader epochs and a producer id that mean something else here; what they would do
        next ranges from waiting for ever to records that are stored twice (measured with Kafka 4.1).
        """
        text = (
            f"Kafka at {self._broker.bootstrap_servers} is another cluster ({cluster_id}) than when "
            f"recording began ({self._broker.cluster_id}): its unstored records are lost; "
            "start again"
        )
        self._stop.set()
        self.state = replace(self.state, other_broker=text)
        LOG.error("%s", text)
        for each in self._when_another_answers:
            each()

    def _ends(self, topics: Iterable[str]) -> dict[str, dict[int, int]]:
        return {topic: self._broker.end_offsets(topic, patience_s=_ANSWER_WITHIN_S) for topic in topics}

    def _recreate(self, missing: list[str], now_s: float) -> None:
        if self._missing_since_s is None:
            self._missing_since_s = now_s
            LOG.warning(
                "Kafka at %s has no topic %s any more", self._broker.bootstrap_servers, ", ".join(missing)
            )
        elif now_s - self._missing_since_s >= _RECREATE_AFTER_S:
            LOG.warning("recreating topic %s", ", ".join(missing))
            self._broker.ensure_topics(self._topics)

    def _log(self, text: str) -> None:
        # The publisher reports an outage; here it would be logged every few seconds.
        if text != self._logged:
            self._logged = text
            LOG.info("%s", text)
