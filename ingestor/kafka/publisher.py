"""The idempotent producer: no message is dropped, and acknowledged offsets are known.

No message is sent twice, with one exception: while a topic is recreated, messages that were acknowledged
without an offset are sent again, because they may be in neither log.

`Publisher.publish` never waits and never loses a message. Messages that do not fit into librdkafka's queue,
because the broker is away, go to a bounded spill and follow in order. Only where that is full, too (or where
the embedded broker would evict what the archive has not stored yet), `blocked` becomes true, and the caller
stops reading its socket until `wait_for_room` returns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from ingestor.kafka.broker import Broker, BrokerError
from ingestor.kafka.deliveries import RECORD_OVERHEAD_BYTES, Deliveries, Epoch, Offsets, PublishError
from ingestor.kafka.logs import LogState, LogWatch, Recreation
from ingestor.kafka.outage import Outage
from ingestor.kafka.renewal import RenewedClient
from ingestor.kafka.spill import Spill

__all__ = ["Offsets", "PublishCounters", "PublishError", "Publisher", "StoredOffsets"]

LOG = logging.getLogger(__name__)

#: (topic without prefix, partition) → next offset that is not stored yet.
StoredOffsets = Callable[[], Mapping[tuple[str, int], int]]

_POLL_EVERY_MESSAGES = 256
#: After an outage the spill is worked off in steps, so that the socket is read between them.
_RESEND_AT_ONCE = 2_000
_WAIT_STEP_S = 0.005
_SAY_BLOCKED_AFTER_S = 10.0
_SAY_AGAIN_AFTER_S = 30.0
_ASK_AGAIN_AFTER_S = 5.0
#: Beside the codes of Kafka's errors.
_SPILL_FULL = 1_000_000


@dataclass
class PublishCounters:
    """Messages since the start, by outcome.

    Attributes:
        acknowledged: messages that the broker has.
        spilled_messages: messages that had to wait in the spill.
        spilled_bytes: their keys and values, with the overhead of records.
        outages: how often the broker acknowledged nothing for some seconds.
        outage_s: seconds of these.
        recreated_logs: topics that were found recreated.
        renewed_clients: how often the producer was replaced, with everything unacknowledged sent again.
    """

    acknowledged: int = 0
    spilled_messages: int = 0
    spilled_bytes: int = 0
    outages: int = 0
    outage_s: float = 0.0
    recreated_logs: int = 0
    renewed_clients: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**asdict(self), "outage_s": round(self.outage_s, 3)}


class Publisher:
    """Publishes to a broker's topics; one per process and event loop. Call `poll` often, `close` at the end.

    Args:
        broker: where to; its topic prefix is applied here.
        stored_offsets: offsets that the archive has stored; needed on an embedded broker, which evicts data.
        unarchived_limit_bytes: on an embedded broker, acknowledged but unarchived bytes a partition, at most.
        spill: where messages wait that the client has no room for; by default the first of them blocks.
        logs: log of each topic; without it there is one log per topic.
        options: further librdkafka options (tests).
    """

    def __init__(
        self,
        broker: Broker,
        *,
        stored_offsets: StoredOffsets | None = None,
        unarchived_limit_bytes: int,
        spill: Spill | None = None,
        logs: LogWatch | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if broker.is_embedded and stored_offsets is None:
            raise ValueError(
                "an embedded broker drops records that are not archived: stored_offsets is needed"
            )
        self._broker = broker
        self._stored_offsets = stored_offsets if broker.is_embedded else None
        self._limit_bytes = unarchived_limit_bytes
        self._deliveries = Deliveries(broker.topic(""), self._stored_offsets is not None)
        self._spill = Spill(None, 0) if spill is None else spill
        self._watch = logs
        #: As taken in by `poll`; with a watch it is newer elsewhere at any time.
        self._state = logs.state if logs is not None else LogState(float("inf"), {})
        #: Called from `poll` for every recreated topic, with the last offset acknowledged in each
        #: partition of its old log, once no further one can come.
        self.on_recreation: Callable[[Recreation, dict[int, int]], None] | None = None
        #: Recreated topics, and the last epoch in which an acknowledgement of the old log may come.
        self._unsettled: list[tuple[Recreation, int]] = []
        #: Topics whose new log has an unknown end, and since when; marks wait for it.
        self._unknown_ends: dict[str, float] = {}
        self._counters = PublishCounters()
        self._outage = Outage(time.monotonic())
        self._since_poll = 0
        self._topics: dict[str, str] = {}
        self._say_again_at: dict[int, float] = {}
        self._ask_again_at = 0.0
        #: Seconds spent waiting for room, over the publisher's life.
        self.blocked_s = 0.0
        config = (
            broker.producer_config()
            | {
                "linger.ms": 5,
                "queue.buffering.max.messages": 100_000,
                "queue.buffering.max.kbytes": 64 * 1024,
                "error_cb": self._on_error,
            }
            | dict(options or {})
        )
        ask_logs = None if logs is None else logs.ask
        self._client = RenewedClient(lambda: Producer(config), self._deliveries, self._spill, ask_logs)

    @property
    def in_flight(self) -> int:
        """Messages published and not acknowledged yet."""
        return self._deliveries.in_flight_messages

    @property
    def blocked(self) -> bool:
        """Return whether the caller must stop producing and `wait_for_room`."""
        return self._spill.is_full or self._deliveries.failure is not None or self._over_limit()

    @property
    def logs(self) -> Mapping[str, str]:
        """Return, for each topic, the id of the log of the offsets passed to `after_acknowledged`."""
        return self._state.ids

    @property
    def counters(self) -> PublishCounters:
        """Return the counts of messages so far."""
        self._counters.acknowledged = self._deliveries.acknowledged
        self._counters.outages = self._outage.count
        self._counters.outage_s = self._outage.total_s
        self._counters.renewed_clients = self._client.renewals
        return self._counters

    def publish(self, topic: str, key: bytes, value: bytes) -> None:
        """Publish one message; returns at once, whatever the state of the broker.

        Args:
            topic: without the configured prefix.
            key: decides the partition.
            value: the encoded message.

        Raises:
            PublishError: the broker finally refused this or an earlier message.
        """
        self._check()
        epoch = self._deliveries.epochs[-1]
        size = len(value) + len(key) + RECORD_OVERHEAD_BYTES
        # No message may overtake those in the spill.
        if self._spill.count or not self._produce(topic, key, value, epoch):
            self._spill.append((topic, key, value, epoch.number))
            self._counters.spilled_messages += 1
            self._counters.spilled_bytes += size
        epoch.outstanding += 1
        self._deliveries.in_flight_messages += 1
        self._deliveries.in_flight_bytes += size
        self._since_poll += 1
        if self._since_poll >= _POLL_EVERY_MESSAGES:
            self.poll()

    def after_acknowledged(self, then: Callable[[Offsets], None]) -> None:
        """Call `then` with the acknowledged offsets once everything published so far is acknowledged.

        It is called from `poll`, and may publish; `logs` then has the logs of the offsets.
        """
        self._deliveries.mark(then)
        self._run_reached()

    def poll(self) -> None:
        """Process acknowledgements; returns at once.

        Raises:
            PublishError: the broker finally refused a message.
        """
        self._since_poll = 0
        client = self._client
        if client.is_serving:
            return
        client.is_serving = True
        try:
            client.serve(lambda: client.current.poll(0))
            self._take_in_logs()
            self._learn_offsets()
            self._run_reached()
        finally:
            client.is_serving = False
        self._check()
        client.renew_where_needed(self._state.asked_at_s)
        self._resend()
        self._outage.observe(
            time.monotonic(),
            self._deliveries.acknowledged,
            self.in_flight,
            self._spill.held_bytes,
            self._spill.limit_bytes,
        )

    async def wait_for_room(self) -> None:
        """Wait until `blocked` is false; while it lasts, the socket must not be read.

        Raises:
            PublishError: the broker finally refused a message.
        """
        self.poll()
        if not self.blocked:
            return
        started = said = time.monotonic()
        if self._spill.limit_bytes and self._spill.is_full:
            self._log_rarely(_SPILL_FULL, f"not reading the feed: {self._reason_for_waiting()}")
        try:
            while self.blocked:
                await asyncio.sleep(_WAIT_STEP_S)
                self.poll()
                if time.monotonic() - said > _SAY_BLOCKED_AFTER_S:
                    said = time.monotonic()
                    LOG.warning(
                        "not reading the feed for %.0f s: %s", said - started, self._reason_for_waiting()
                    )
                    self._spill.write()  # a disk that was full may have room by now
        finally:
            self.blocked_s += time.monotonic() - started

    async def drain(self, timeout_s: float) -> bool:
        """Wait until all published messages, and those scheduled after them, are acknowledged.

        Returns:
            Whether that succeeded without a pause of `timeout_s`: a long spill takes time.

        Raises:
            PublishError: the broker finally refused a message.
        """
        deliveries = self._deliveries
        acknowledged = deliveries.acknowledged
        deadline = time.monotonic() + timeout_s
        while True:
            self.poll()
            if not self.in_flight and deliveries.epochs[0].then is None and not deliveries.reached:
                return True
            if deliveries.acknowledged != acknowledged:
                acknowledged = deliveries.acknowledged
                deadline = time.monotonic() + timeout_s
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_WAIT_STEP_S)

    def acknowledged_offsets(self) -> Offsets:
        """Return the last acknowledged offset by topic (without prefix) and partition."""
        return self._deliveries.offsets()

    def close(self) -> int:
        """Release the broker.

        Returns:
            How many messages it never acknowledged.
        """
        self._client.is_serving = True
        self._client.current.purge()
        self._client.current.flush(1.0)
        self._spill.close()
        return self.in_flight

    def _produce(self, topic: str, key: bytes, value: bytes, epoch: Epoch) -> bool:
        name = self._topics.get(topic)
        if name is None:
            name = self._topics[topic] = self._broker.topic(topic)
        try:
            self._client.current.produce(name, value, key, on_delivery=epoch.delivered)
        except BufferError:
            return False
        except KafkaException as error:
            if error.args[0].code() in (KafkaError._UNKNOWN_TOPIC, KafkaError._FATAL):
                # Topic or client no longer exist: both are noticed, and the message is sent later.
                return False
            raise PublishError(f"Kafka refused a message for {name}: {error.args[0].str()}") from None
        return True

    def _resend(self) -> None:
        """Publish the messages of the spill, as far as there is room."""
        if not self._client.may_resend(self._state.asked_at_s):
            return
        spill = self._spill
        for _ in range(min(len(spill), _RESEND_AT_ONCE)):
            topic, key, value, number = spill.first()
            if not self._produce(topic, key, value, self._deliveries.epoch(number)):
                return
            spill.pop()

    # Logs

    def _take_in_logs(self) -> None:
        """Process recreated topics, and the ends of their new logs."""
        if self._watch is None:
            self._deliveries.drop_unplaced(self._state.asked_at_s, ())
            return
        before, self._state = self._state, self._watch.state
        now = time.monotonic()
        for recreation in self._state.recreations[len(before.recreations) :]:
            self._counters.recreated_logs += 1
            self._client.doubt()
            self._publish_unplaced(recreation.topic)
            self._unsettled.append((recreation, self._deliveries.end_epoch()))
        recreated = [recreation.topic for recreation, _ in self._unsettled]
        self._deliveries.drop_unplaced(self._state.asked_at_s, recreated)
        while self._unsettled and self._deliveries.is_settled(self._unsettled[0][1]):
            recreation, _ = self._unsettled.pop(0)
            self._publish_unplaced(recreation.topic)
            acknowledged = self._deliveries.log_was_recreated(recreation.topic)
            self._unknown_ends[recreation.topic] = now
            if self.on_recreation is not None:
                self.on_recreation(recreation, acknowledged)
        for topic, since in list(self._unknown_ends.items()):
            if self._state.asked_at_s > since:
                self._deliveries.log_ends_at(topic, self._state.ends[topic], self._state.asked_at_s)
                del self._unknown_ends[topic]
        if self._unknown_ends:
            self._watch.ask()

    def _publish_unplaced(self, topic: str) -> None:
        """Publish again what was acknowledged without an offset while a topic was recreated."""
        unplaced = self._deliveries.take_unplaced(topic)
        if unplaced:
            LOG.warning(
                "%s: %d messages were acknowledged without an offset while it was recreated; sent again",
                topic,
                len(unplaced),
            )
        for each in unplaced:
            self.publish(each.topic, each.key, each.value)

    def _run_reached(self) -> None:
        """Call `then` of reached marks, once the log of their offsets is certain."""
        reached = self._deliveries.reached
        waits = self._unsettled or self._unknown_ends
        while reached and not waits and reached[0].at_s < self._state.asked_at_s:
            mark = reached.popleft()
            mark.then(mark.offsets)
        if reached and self._watch is not None:
            self._watch.ask()

    def _learn_offsets(self) -> None:
        """Ask the broker for an offset that an acknowledgement lacks: the message is before the log's end.

        The next message of that partition would have it too, but it may be one that waits for this.
        """
        unknown = self._deliveries.unknown_offsets()
        if not unknown or time.monotonic() < self._ask_again_at:
            return
        try:
            for topic, partition in unknown:
                _, end = self._broker.offsets(topic, partition)
                self._deliveries.partitions[topic, partition].known_to_end_at(end - 1)
        except BrokerError as error:
            self._ask_again_at = time.monotonic() + _ASK_AGAIN_AFTER_S
            LOG.warning("a checkpoint waits: %s", error)
            return
        self._deliveries.settle()

    def _over_limit(self) -> bool:
        if self._stored_offsets is None or not self._is_full():
            return False
        self._deliveries.stored(self._stored_offsets())
        return self._is_full()

    def _is_full(self) -> bool:
        # Messages in flight will be in a partition that is unknown yet: they count for each.
        return self._deliveries.unstored_bytes + self._deliveries.in_flight_bytes >= self._limit_bytes

    def _reason_for_waiting(self) -> str:
        if self._stored_offsets is not None and self._is_full():
            return f"{self._deliveries.unstored_bytes} bytes of a partition wait for the archive"
        waiting = f"Kafka has not acknowledged {self.in_flight} messages"
        if self._spill.error:
            return f"{waiting}, and {self._spill.error}"
        if self._spill.limit_bytes:
            return f"{waiting}, and the spill is full (ingest.spill_bytes: {self._spill.limit_bytes})"
        return waiting

    def _check(self) -> None:
        if self._deliveries.failure is not None:
            raise self._deliveries.failure

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._client.fail(error.str())
            return
        # Every attempt to reconnect reports the same again.
        self._log_rarely(error.code(), f"Kafka: {error.str()}")

    def _log_rarely(self, kind: int, text: str) -> None:
        now = time.monotonic()
        if now >= self._say_again_at.get(kind, 0.0):
            self._say_again_at[kind] = now + _SAY_AGAIN_AFTER_S
            LOG.warning("%s", text)
