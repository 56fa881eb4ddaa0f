"""One activity of a scorer: rows are joined, scored and published until another instance takes over.

Belongs here: the order of steps, and Kafka. Does not belong here: who is active.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from cryptovol_dagster.core.features.catalogue import feature_hash, own_feature_names
from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.features.live import revisable_ns
from cryptovol_dagster.core.live.absence import Absences
from cryptovol_dagster.core.live.join import OwnRow, RowJoin
from cryptovol_dagster.core.metrics.episodes import EpisodeRule
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.live.clients import BATCH_RECORDS, LogReader, check_error
from cryptovol_dagster.live.clock import FeedClock
from cryptovol_dagster.live.errors import LiveError
from cryptovol_dagster.live.scoring.champions import ChampionFinder, ChampionWatch
from cryptovol_dagster.live.scoring.episodes import Changed, Episodes
from cryptovol_dagster.live.scoring.minutes import Minutes, Outlet
from cryptovol_dagster.live.scoring.progress import Pulse, ScorerProgress
from cryptovol_dagster.live.scoring.resume import Resumed, Resumption
from cryptovol_dagster.live.scoring.scores import Scores
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

if TYPE_CHECKING:
    from cryptovol_dagster.live.scoring.scorer import Scorer

LOG = logging.getLogger(__name__)

GROUP = "cryptovol-scorer"
_POLL_S = 0.05
_DELIVERY_TIMEOUT_S = 30.0
_EVERY_S, _PROGRESS_EVERY_S = 1.0, 5.0


class Activity:
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

    def __enter__(self) -> Activity:
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
            self._lose(number, f"{name} partition {number} no longer contains the rows after the last scores")
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
        self._lose(
            output, f"{name} partition {output} no longer contains the next rows; it goes on at {start}"
        )

    def _lose(self, output: int, reason: str) -> None:
        """Note that rows in a partition of ticks.features cannot be read any more."""
        for number in [output] if self._n_outputs == self._n_ticks else range(self._n_ticks):
            self._join.lose(number)
        self._not_scored(reason)

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
