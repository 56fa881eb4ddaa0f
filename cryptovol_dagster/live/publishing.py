"""Publishing of rows: encoded, passed to the producer, and acknowledged by the broker."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from confluent_kafka import KafkaError, Message, Producer

from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.features.live_rows import LiveRows
from cryptovol_dagster.live.errors import LiveError
from ingestor.envelope import FeatureMessage, closing_message, encode

#: librdkafka's "any partition": that of the key.
PARTITION_UA = -1


class RowPublisher:
    """Publishes rows to one topic. Failures come late: the next call that checks raises them."""

    def __init__(
        self,
        producer: Producer,
        *,
        topic: str,
        bootstrap_servers: str,
        feature_version: str,
        names: Sequence[str],
        stop: threading.Event,
    ) -> None:
        """Publish with `producer`.

        Args:
            producer: an idempotent producer that retries for ever.
            topic: full name of the topic.
            bootstrap_servers: where it is, for messages.
            feature_version: of the rows.
            names: of the features, in the order of `LiveRows.values`.
            stop: once it is set, a full queue is an error and not waited for.
        """
        self._producer, self._topic, self._where = producer, topic, bootstrap_servers
        self._version, self._names, self._stop = feature_version, names, stop
        self._failure: LiveError | None = None

    def publish(self, rows: LiveRows) -> None:
        """Pass rows to the producer; wait while its queue is full.

        Raises:
            LiveError: the broker refused a row, or the queue is full and the run is stopping.
        """
        reasons = [reason.name.lower() for reason in Reason]
        keys = [product.encode() for product in rows.products]
        columns = (rows.product, rows.bar_end_ns, rows.revision, rows.provisional, rows.valid, rows.reason)
        for values, *cells in zip(
            rows.values.tolist(), *(column.tolist() for column in columns), strict=True
        ):
            product, bar_end_ns, revision, provisional, valid, reason = cells
            message = FeatureMessage(
                product_id=rows.products[product],
                bar_end_ns=bar_end_ns,
                feature_version=self._version,
                revision=revision,
                provisional=provisional,
                valid=valid,
                reason=reasons[reason],
                values=dict(zip(self._names, values, strict=True)),
            )
            self._produce(keys[product], encode(message))

    def publish_closing(self, partition: int, closed_until_ns: int, outputs: Iterable[int]) -> None:
        """Hand over how far a partition has closed; to be called after its rows.

        Args:
            partition: of the ticks.
            closed_until_ns: event time until which its bars are closed.
            outputs: partitions of the topic that rows of these ticks may lie in.

        Raises:
            LiveError: as `publish`.
        """
        message = closing_message(partition, closed_until_ns, self._version)
        for output in outputs:
            self._produce(message.product_id.encode(), encode(message), output)

    def poll(self, timeout_s: float = 0.0) -> None:
        """Process acknowledgements.

        Raises:
            LiveError: the broker refused a row.
        """
        self._producer.poll(timeout_s)
        if self._failure is not None:
            raise self._failure

    def flush(self, timeout_s: float) -> int:
        """Wait until rows are acknowledged; return how many are not after `timeout_s`.

        Raises:
            LiveError: the broker refused a row.
        """
        left = self._producer.flush(timeout_s)
        if self._failure is not None:
            raise self._failure
        return left

    def _produce(self, key: bytes, value: bytes, partition: int = PARTITION_UA) -> None:
        while True:
            try:
                self._producer.produce(self._topic, value, key, partition, on_delivery=self._delivered)
                return
            except BufferError:
                # The broker is slow or away; ticks wait in Kafka meanwhile.
                self.poll(0.1)
                if self._stop.is_set():
                    raise LiveError(
                        f"Kafka at {self._where} accepts no more rows; the next run publishes them"
                    ) from None

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        # No delivery times out, so a returned row can never succeed.
        if error is not None and self._failure is None:
            self._failure = LiveError(f"Kafka refused a row for {message.topic()}: {error.str()}")
