"""The loop of ``cryptovol score``: rows of ticks.features in, ticks.scores and live.events out.

Belongs here: who is active, the order of steps, and Kafka. One instance scores, as every row needs the rows
of other partitions; more of them stand by. The published scores are the reference: a run continues after
them (see `resume`).
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from cryptovol_dagster.core.features.catalogue import feature_hash, own_feature_names
from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.features.live import revisable_ns
from cryptovol_dagster.core.live.absence import Absences
from cryptovol_dagster.core.live.join import OwnRow, RowJoin
from cryptovol_dagster.core.metrics.episodes import EpisodeRule
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.live.clients import BATCH_RECORDS, LogReader, check_error
from cryptovol_dagster.live.clock import FeedClock
from cryptovol_dagster.live.errors import LiveError
from cryptovol_dagster.live.scoring.champions import ChampionFinder, ChampionWatch
from cryptovol_dagster.live.scoring.episodes import Changed, Episodes
from cryptovol_dagster.live.scoring.minutes import Minutes, MinutesTask, Outlet
from cryptovol_dagster.live.scoring.progress import ScorerProgress, ScorerStarted, ScorerSummary
from cryptovol_dagster.live.scoring.resume import Resumed, Resumption
from cryptovol_dagster.live.scoring.scores import Scores
from ingestor.archive.consumer import Archive
from ingestor.envelope import (
    DECODERS,
    FEATURES_TOPIC,
    LIVE_EVENTS_TOPIC,
    SCORES_TOPIC,
    SHADOW_TOPIC,
    TICKS,
    FeatureMessage,
    LiveEvent,
    LiveEventKind,
    ScoreMessage,
    closed_partition,
    closing_score,
    encode,
)
from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.kafka.broker import Broker
from ingestor.settings.sections import LiveSettings

LOG = logging.getLogger(__name__)

GROUP = "cryptovol-scorer"
_POLL_S = 0.05
_SESSION_TIMEOUT_MS = 6_000
#: A standby notices the end of a session at its next heartbeat.
_HEARTBEAT_MS = 500
_DELIVERY_TIMEOUT_S = 30.0
_EVERY_S, _PROGRESS_EVERY_S = 1.0, 5.0


class Pulse(NamedTuple):
    """State of an active scorer, once a second.

    Attributes:
        now_ns: wall clock.
        heard_at_ns: wall clock when the last row, or report of a closing, came.
        chain: whose champion.
        trained_until_ns: end of the champion's training, as long before `now_ns` as it is before the newest
            bar; None without a champion.
    """

    now_ns: int
    heard_at_ns: int
    chain: str
    trained_until_ns: int | None


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
        with _Active(self._task, self._stop, self.progress) as active:
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


class _Active:
    """One activity: from the newest published scores on, until another instance is active or the end."""

    def __init__(self, task: Scorer, stop: threading.Event, progress: ScorerProgress) -> None:
        broker, spec = task.broker, task.spec
        self._task, self._broker, self._spec, self._stop, self._progress = task, broker, spec, stop, progress
        self._n_ticks, self._n_outputs = broker.partitions(TICKS), broker.partitions(FEATURES_TOPIC)
        self._n_scores = broker.partitions(SCORES_TOPIC)
        lateness_ns = round(task.live.lateness_s * NS)
        self._join = RowJoin(
            spec,
            lateness_ns=lateness_ns,
            partition_of=self._partition_of,
            outputs=1 if self._n_outputs == self._n_ticks else self._n_outputs,
        )
        self._absences = Absences(spec.bar_ns, self._partition_of, task.products)
        self._names, self._version = own_feature_names(spec), feature_hash(spec)
        self._reasons = {reason.name.lower(): int(reason) for reason in Reason}
        self._scores, self._shadow = Scores(spec), Scores(spec)
        self._episodes = Episodes(spec.name, spec.bar_ns)
        self._watch = ChampionWatch(
            ChampionFinder(task.lake, spec, task.tracking_uri),
            task.lake,
            spec,
            every_s=task.live.champion_check_s,
            recent_rows=self._scores.recent_rows,
        )
        self._clock = FeedClock(carry_ns=2**62)
        self._known_since: dict[int, int] = {}
        self._closed: dict[int, int] = {}
        self._due_s = self._progress_due_s = 0.0
        self._failure: LiveError | None = None
        #: Whether every score is acknowledged, so that the archive can store them all.
        self._left = False
        #: Since when no row came (monotonic clock).
        self.idle_since_s = time.monotonic()
        self._heard_at_ns = time.time_ns()
        self._rows = Consumer(
            broker.consumer_config(broker.topic(f"{GROUP}-rows"))
            | {"queued.max.messages.kbytes": 8 * 1024, "fetch.queue.backoff.ms": 10}
        )
        self._producer = Producer(broker.producer_config() | {"linger.ms": 1})
        self._archive = None if task.new_archive is None else task.new_archive()
        self._minutes: Minutes | None = None

    def __enter__(self) -> _Active:
        reader = Consumer(self._broker.consumer_config(self._broker.topic(f"{GROUP}-reader")))
        try:
            reach_ns = revisable_ns(self._spec, round(self._task.live.lateness_s * NS))
            log = LogReader(self._broker, reader)
            resumed = Resumption(self._broker, log, self._spec.name, revisable_ns=reach_ns).resume()
        finally:
            reader.close()
        self._restore(resumed)
        if self._archive is not None:
            self._archive.start()
        self._watch.start()
        self._change_models()
        self._publish_changes(self._episodes.restore(resumed.messages, self._rule()))
        self._minutes = self._new_minutes()
        # Loading a model takes seconds, in which no row was read.
        self.idle_since_s = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self._watch.stop()
        if self._minutes is not None:
            self._minutes.stop()
        self._rows.close()
        self._producer.purge()
        if self._archive is not None:
            self._archive.stop(drain=self._left)

    def turn(self) -> None:
        """Read what has arrived, and publish what can be published."""
        first = self._rows.poll(_POLL_S)
        messages = [] if first is None else [first, *self._rows.consume(BATCH_RECORDS, 0.0)]
        self._take(messages)
        self._publish_joined()
        if self._minutes is not None:
            self._minutes.turn(self._clock.reading(time.monotonic_ns()))
        self._producer.poll(0)
        if self._failure is not None:
            raise self._failure
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + _EVERY_S
            self._change_models()
            self._note_silence()
            self._publish_closings()
            self._forget()
            if self._archive is not None and self._archive.error is not None:
                raise self._archive.error
            if self._task.on_second is not None:
                model, now_ns = self._scores.in_use, time.time_ns()
                # The age counts in the market's time, which is not the wall's when a recording is played.
                age_ns = 0 if model is None else self._scores.newest_ns - model.model.meta.train_end_ns
                trained_ns = None if model is None else now_ns - age_ns
                self._task.on_second(Pulse(now_ns, self._heard_at_ns, self._spec.name, trained_ns))
        if self._task.on_progress is not None and now_s >= self._progress_due_s:
            self._progress_due_s = now_s + _PROGRESS_EVERY_S
            self._task.on_progress(self._progress)

    def leave(self) -> None:
        """Publish everything that can be, and wait until it is acknowledged.

        Raises:
            LiveError: the broker does not acknowledge it in time.
        """
        self._publish_joined()
        self._publish_closings()
        if left := self._producer.flush(_DELIVERY_TIMEOUT_S):
            raise LiveError(
                f"Kafka at {self._broker.bootstrap_servers} did not acknowledge the last {left} scores "
                f"within {_DELIVERY_TIMEOUT_S:g} s; the next run publishes them"
            )
        self._left = True

    # Start

    def _restore(self, resumed: Resumed) -> None:
        self._scores.restore(resumed.messages)
        self._known_since = resumed.known_since_ns
        for message in resumed.messages:
            self._absences.saw(message.product_id, message.bar_end_ns)
        products = dict.fromkeys([*self._task.products, *(each.product_id for each in resumed.messages)])
        for product in products:
            if (closed_ns := resumed.closed_ns.get(self._partition_of(product))) is not None:
                self._absences.start(product, closed_ns)
        name = self._broker.topic(FEATURES_TOPIC)
        self._rows.assign(
            [TopicPartition(name, number, offset) for number, offset in resumed.offsets.items()]
        )
        for number in resumed.expired:
            self._not_scored(f"{name} partition {number} no longer contains the rows after the last scores")
        LOG.info(
            "resumed with %d published scores; partitions scored until %s",
            len(resumed.messages),
            {number: ns_to_rfc3339(ns) for number, ns in sorted(resumed.closed_ns.items())} or "never",
        )

    # Reading

    def _take(self, messages: Sequence[Message]) -> None:
        now_ns = time.monotonic_ns()
        for message in messages:
            error, output = message.error(), message.partition()
            if error is None:
                assert output is not None
                self._take_record(message.value() or b"", output, now_ns)
            elif error.code() == KafkaError._AUTO_OFFSET_RESET and output is not None:
                self._read_on(output)
            else:
                check_error(error, self._broker, FEATURES_TOPIC)

    def _take_record(self, value: bytes, output: int, now_ns: int) -> None:
        try:
            message: FeatureMessage = DECODERS[FEATURES_TOPIC].decode(value)
        except msgspec.MsgspecError:
            self._progress.unreadable += 1
            return
        self.idle_since_s, self._heard_at_ns = time.monotonic(), time.time_ns()
        number = closed_partition(message)
        if number is not None:
            until_ns = self._join.close(number, output, message.bar_end_ns)
            self._clock.hear(until_ns, now_ns)
            if self._minutes is not None:
                self._minutes.hear(number, until_ns)
            self._publish_unheard(number, until_ns, provisional=False)
            return
        product, end_ns = message.product_id, message.bar_end_ns
        self._absences.saw(product, end_ns)
        if message.feature_version != self._version:
            self._progress.other_features += 1
            self._publish(self._scores.other_features(product, end_ns, time.time_ns()))
            return
        self._join.add(
            OwnRow(
                product=product,
                bar_end_ns=end_ns,
                revision=message.revision,
                provisional=message.provisional,
                valid=message.valid,
                reason=self._reasons[message.reason],
                # NumPy reads None as NaN.
                values=np.array([message.values.get(name) for name in self._names], dtype=np.float64),
            ),
            now_ns,
        )

    def _read_on(self, output: int) -> None:
        """Continue at the start of a log that no longer has the next rows."""
        start, _ = self._broker.offsets(FEATURES_TOPIC, output)
        name = self._broker.topic(FEATURES_TOPIC)
        self._rows.seek(TopicPartition(name, output, start))
        self._not_scored(f"{name} partition {output} no longer contains the next rows; it goes on at {start}")

    # Publishing

    def _publish_joined(self) -> None:
        wait_ns = round(self._task.live.cross_wait_s * NS)
        for bar in self._join.take(time.monotonic_ns(), wait_ns):
            now_ns = time.time_ns()
            messages = self._scores.of_bar(bar, now_ns)
            self._publish([each for each in messages if self._is_open(each)])
            if self._shadow.in_use is not None:
                self._produce(SHADOW_TOPIC, self._shadow.of_bar(bar, now_ns))

    def _is_open(self, message: ScoreMessage) -> bool:
        """Return whether an earlier run may not have published a message: it is of a bar that it knew."""
        since_ns = self._known_since.get(self._partition_of(message.product_id), 0)
        return message.revision > 0 or message.bar_end_ns > since_ns

    def _publish_unheard(self, number: int, until_ns: int, *, provisional: bool) -> None:
        for product, end_ns in self._absences.due(number, until_ns):
            messages = self._scores.unheard(product, end_ns, time.time_ns(), provisional=provisional)
            self._publish(messages)

    def _note_silence(self) -> None:
        """Publish bars of which no row came though the time for it has passed."""
        clock_ns = self._clock.reading(time.monotonic_ns())
        if clock_ns is not None:
            until_ns = clock_ns - round(self._task.live.not_heard_after_s * NS)
            for number in range(self._n_ticks):
                self._publish_unheard(number, until_ns, provisional=True)

    def _publish(self, messages: list[ScoreMessage]) -> None:
        if not messages:
            return
        stepped = [self._episodes.step(message, self._rule()) for message in messages]
        messages = [message for message, _ in stepped]
        self._progress.count(messages)
        self._produce(SCORES_TOPIC, messages)
        if self._task.on_scores is not None:
            self._task.on_scores(messages)
        self._publish_changes([change for _, changes in stepped for change in changes])

    def _rule(self) -> EpisodeRule | None:
        model = self._scores.in_use
        return None if model is None else model.flagging.episode_rule

    def _publish_changes(self, changes: Sequence[Changed]) -> None:
        """Publish that episodes opened or closed."""
        for changed in changes:
            self._publish_event(changed.event(self._spec.name, time.time_ns()))

    def _produce(self, topic: str, messages: Sequence[ScoreMessage], partition: int = -1) -> None:
        name = self._broker.topic(topic)
        for message in messages:
            self._send(name, encode(message), message.product_id.encode(), partition)

    def _send(self, name: str, value: bytes, key: bytes, partition: int = -1) -> None:
        while True:
            try:
                self._producer.produce(name, value, key, partition, on_delivery=self._delivered)
                return
            except BufferError:
                self._producer.poll(0.1)
                if self._stop.is_set():
                    raise LiveError(
                        f"Kafka at {self._broker.bootstrap_servers} accepts no more scores; the next run "
                        "publishes them"
                    ) from None

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        # No delivery times out, so a returned score can never succeed.
        if error is not None and self._failure is None:
            self._failure = LiveError(f"Kafka refused a score for {message.topic()}: {error.str()}")

    def _publish_closings(self) -> None:
        for number in range(self._n_ticks):
            until_ns = self._join.returned_until_ns(number)
            if until_ns and until_ns != self._closed.get(number):
                self._closed[number] = until_ns
                self._publish_closing(self._spec.name, number, until_ns)

    def _publish_closing(self, chain: str, number: int, until_ns: int) -> None:
        message = closing_score(chain, number, until_ns, time.time_ns())
        outputs = [number] if self._n_scores == self._n_ticks else range(self._n_scores)
        for output in outputs:
            self._produce(SCORES_TOPIC, [message], output)

    # The minutes

    def _new_minutes(self) -> Minutes | None:
        task, outlet = (
            self._task,
            Outlet(self._produce, self._publish_closing, self._note, self._publish_event),
        )
        if task.minutes is None or not task.minutes.has_candles(task.products):
            return None
        return Minutes(task.minutes, self._broker, outlet, task.live, task.products, self._partition_of)

    def _note(self, messages: list[ScoreMessage]) -> None:
        self._progress.count_others(messages)
        if self._task.on_scores is not None and messages:
            self._task.on_scores(messages)

    def _forget(self) -> None:
        self._join.forget()
        self._progress.rows_kept = self._join.n_rows
        oldest_ns = 2**62
        for product in self._scores.products:
            since_ns = self._join.returned_since_ns(product)
            oldest_ns = min(oldest_ns, since_ns)
            for scores in (self._scores, self._shadow):
                scores.forget_before(product, since_ns)
        for scores in (self._scores, self._shadow):
            scores.forget_models_before(oldest_ns)

    # Models and events

    def _change_models(self) -> None:
        for change in self._watch.changes():
            role = "challenger" if change.is_shadow else "champion"
            if change.refused:
                LOG.error("another %s is refused, the present one goes on: %s", role, change.refused)
                self._progress.refused += 1
                self._event("model_refused", {"role": role, "reason": change.refused})
                continue
            last_ns = (self._shadow if change.is_shadow else self._scores).use(change.ready)
            said = None if change.ready is None else str(change.ready.champion)
            LOG.info("%s from the next bar on: %s", role, said)
            detail = {"role": role, "model": said, "version": change.ready and change.ready.version}
            self._event("model_changed", detail, last_ns)
            if not change.is_shadow:
                self._progress.changes += 1
                self._progress.champion = said

    def _not_scored(self, reason: str) -> None:
        LOG.warning("rows are not scored: %s", reason)
        self._event("not_scored", {"reason": reason})

    def _event(
        self,
        kind: LiveEventKind,
        detail: dict[str, object],
        bar_end_ns: int | None = None,
    ) -> None:
        self._publish_event(
            LiveEvent(
                kind=kind,
                at_ns=time.time_ns(),
                chain=self._spec.name,
                bar_end_ns=bar_end_ns,
                detail=detail,
            )
        )

    def _publish_event(self, event: LiveEvent) -> None:
        self._send(self._broker.topic(LIVE_EVENTS_TOPIC), encode(event), event.chain.encode())
        if self._task.on_event is not None:
            self._task.on_event(event)

    def _partition_of(self, product: str) -> int:
        """Return where librdkafka puts the messages of a key."""
        return zlib.crc32(product.encode()) % self._n_ticks
