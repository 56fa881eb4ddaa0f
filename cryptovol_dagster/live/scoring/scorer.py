"""The loop of ``cryptovol score``: rows of ticks.features in, ticks.scores and live.events out.

Belongs here: who is active. One instance scores (`activity`), as every row needs the rows of other
partitions; more of them stand by. The published scores are the reference: a run continues after them (see
`resume`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.live.clients import check_error
from cryptovol_dagster.live.errors import LiveError
from cryptovol_dagster.live.scoring.activity import GROUP, Activity
from cryptovol_dagster.live.scoring.minutes import MinutesTask
from cryptovol_dagster.live.scoring.progress import Pulse, ScorerProgress, ScorerStarted, ScorerSummary
from ingestor.archive.consumer import Archive
from ingestor.envelope import (
    LIVE_EVENTS_TOPIC,
    SCORES_TOPIC,
    LiveEvent,
    ScoreMessage,
)
from ingestor.kafka.broker import Broker
from ingestor.settings.sections import LiveSettings

LOG = logging.getLogger(__name__)

_POLL_S = 0.05
_SESSION_TIMEOUT_MS = 6_000
#: A standby notices the end of a session at its next heartbeat.
_HEARTBEAT_MS = 500


class Scorer:
    """Scores every bar of a chain as its rows arrive. Use `run`, once."""

    def __init__(
        self,
        broker: Broker,
        spec: TimescaleSpec,
        live: LiveSettings,
        *,
        lake: Lake,
        tracking_uri: str,
        products: Sequence[str],
        minutes: MinutesTask | None = None,
        new_archive: Callable[[], Archive] | None = None,
        on_scores: Callable[[list[ScoreMessage]], None] | None = None,
        on_event: Callable[[LiveEvent], None] | None = None,
        on_second: Callable[[Pulse], None] | None = None,
        on_progress: Callable[[ScorerProgress], None] | None = None,
    ) -> None:
        """Ask nothing yet.

        Args:
            broker: where the topics are.
            spec: the chain.
            live: lateness and intervals.
            lake: decisions and model files.
            tracking_uri: MLflow, whose alias names the champion.
            products: configured products; each of their bars is published, with a reason if it has no row.
            minutes: the chains of the minutes, which are scored beside; None without them.
            new_archive: returns the archive of the scores, which runs while this instance is active; None
                where another process runs one.
            on_scores: called with the scores that are published.
            on_event: called with each event of the live path.
            on_second: called once a second while this instance is active.
            on_progress: called every few seconds.
        """
        self.broker, self.spec, self.live, self.lake = broker, spec, live, lake
        self.tracking_uri, self.products = tracking_uri, tuple(products)
        self.minutes, self.new_archive = minutes, new_archive
        self.on_scores, self.on_event = on_scores, on_event
        self.on_second, self.on_progress = on_second, on_progress

    def run(
        self,
        stop: threading.Event,
        *,
        duration_s: float | None = None,
        until_idle_s: float | None = None,
        on_started: Callable[[ScorerStarted], None] | None = None,
    ) -> ScorerSummary:
        """Score until `stop` is set, for `duration_s`, or until no row came for `until_idle_s`.

        Raises:
            LiveError: scores cannot be published; everything published before stays.
            ArchiveError: raw storage cannot store the scores; they stay in Kafka.
            BrokerError: the broker cannot be used.
        """
        began_s, broker = time.monotonic(), self.broker
        try:
            broker.ensure_topics()
            if on_started is not None:
                topic = broker.topic(SCORES_TOPIC)
                on_started(ScorerStarted(broker.bootstrap_servers, topic, self.spec.name))
            ended, progress = _Turns(self, stop, began_s, duration_s, until_idle_s).run()
        except KafkaException as error:
            where = broker.bootstrap_servers
            raise LiveError(f"reading from Kafka at {where} failed: {error.args[0].str()}") from error
        return ScorerSummary(ended, time.monotonic() - began_s, progress)


class _Turns:
    """Takes turns with other instances: scores while this one is active, waits while it is not."""

    def __init__(
        self,
        task: Scorer,
        stop: threading.Event,
        began_s: float,
        duration_s: float | None,
        until_idle_s: float | None,
    ) -> None:
        self._task, self._stop, self._began_s = task, stop, began_s
        self._duration_s, self._until_idle_s = duration_s, until_idle_s
        self._broker = task.broker
        self._is_active = self._broker.is_embedded
        self._control = Consumer(self._control_config())
        self.progress = ScorerProgress()

    def run(self) -> tuple[str, ScorerProgress]:
        """Return why it ended, and the counts."""
        if not self._is_active:
            self._control.subscribe(
                [self._broker.topic(LIVE_EVENTS_TOPIC)],
                on_assign=self._assigned,
                on_revoke=self._revoked,
                on_lost=self._revoked,
            )
        try:
            while True:
                if (ended := self._ended()) is not None:
                    return ended, self.progress
                self._poll_control(_POLL_S)
                if self._is_active and (ended := self._score()) is not None:
                    return ended, self.progress
        finally:
            self._control.close()

    def _score(self) -> str | None:
        """Score while this instance is active; return why the run ended, None where another takes over."""
        self.progress.is_active = True
        LOG.info("this instance scores from now on")
        ended = None
        with Activity(self._task, self._stop, self.progress) as active:
            while self._is_active and (ended := self._ended(active.idle_since_s)) is None:
                active.turn()
                self._poll_control(0.0)
            if self._is_active:
                active.leave()
        self.progress.is_active = False
        return ended

    def _ended(self, idle_since_s: float | None = None) -> str | None:
        now_s = time.monotonic()
        if self._stop.is_set():
            return "signal"
        if self._duration_s is not None and now_s - self._began_s >= self._duration_s:
            return "duration"
        if self._until_idle_s is not None and idle_since_s is not None:
            return "idle" if now_s - idle_since_s >= self._until_idle_s else None
        return None

    def _control_config(self) -> dict[str, object]:
        broker = self._broker
        return broker.consumer_config(broker.topic(GROUP)) | {
            "auto.offset.reset": "latest",
            "session.timeout.ms": _SESSION_TIMEOUT_MS,
            "heartbeat.interval.ms": _HEARTBEAT_MS,
            # The active one stays so when another joins.
            "partition.assignment.strategy": "cooperative-sticky",
        }

    def _poll_control(self, timeout_s: float) -> None:
        if self._broker.is_embedded:
            return
        # Its records are not needed here: to be assigned the partition is to be active.
        while (message := self._control.poll(timeout_s)) is not None:
            timeout_s = 0.0
            if (error := message.error()) is not None:
                check_error(error, self._broker, LIVE_EVENTS_TOPIC)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._is_active = self._is_active or any(each.partition == 0 for each in partitions)

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._is_active = self._is_active and not any(each.partition == 0 for each in partitions)
