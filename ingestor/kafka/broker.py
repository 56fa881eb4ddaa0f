"""Connection to a Kafka broker, real or embedded: its topics and their logs.

The embedded broker is librdkafka's mock cluster: it speaks the wire protocol on a loopback port, so other
processes can connect to it, but it lives in this process's memory, keeps about 5 MiB a partition, has no
admin API and no real transactions. A broker that calls itself ``mockCluster…`` is treated as one wherever it
runs.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from ingestor.envelope import ALL_TOPICS, DEAD, EVENTS, LIVE_EVENTS_TOPIC
from ingestor.errors import CryptovolError
from ingestor.kafka.errors import ASK_AGAIN
from ingestor.settings.sections import KafkaSettings

#: librdkafka's own log lines; a NullHandler keeps them off stderr until an application configures logging.
LIBRARY_LOG = logging.getLogger("ingestor.kafka.librdkafka")
LIBRARY_LOG.addHandler(logging.NullHandler())

T = TypeVar("T")

_MOCK_CLUSTER_PREFIX = "mockCluster"
#: Consumer group of the archives of one storage, without the prefix.
ARCHIVE_GROUP = "cryptovol-archive"
#: The same of the archives that store the scores.
SCORES_ARCHIVE_GROUP = "cryptovol-scores-archive"
#: Topics whose order over the whole feed matters more than their throughput.
_SINGLE_PARTITION_TOPICS = (EVENTS, DEAD, LIVE_EVENTS_TOPIC)
_EMBEDDED_FETCH_WAIT_MS = 20
_METADATA_REFRESH_MS = 5_000
_MARKER = "cryptovol-log-"
_RETRY_S = 0.05
#: How long a question to a broker that was reached before outlasts its restart.
_PATIENCE_S = 30.0
_ZERO_TOPIC_ID = "AAAAAAAAAAAAAAAAAAAAAA"


class BrokerError(CryptovolError):
    """A broker cannot be reached or used; the message is one line with address and reason."""


def connect(settings: KafkaSettings) -> Broker:
    """Connect to the configured broker; start an embedded one if the settings select it.

    Args:
        settings: the ``kafka`` section of the configuration.

    Returns:
        A `Broker`, also a context manager; closing it ends an embedded broker and its data.

    Raises:
        BrokerError: there is no answer within ``connect_timeout_s``, or a security option is refused.
    """
    if not settings.is_embedded:
        return Broker(settings, settings.bootstrap_servers)
    cluster = Producer({"test.mock.num.brokers": 1, "logger": LIBRARY_LOG})
    _mark(cluster, settings.connect_timeout_s)
    brokers = cluster.list_topics(timeout=settings.connect_timeout_s).brokers.values()
    return Broker(settings, ",".join(f"{broker.host}:{broker.port}" for broker in brokers), cluster)


class Broker:
    """A reachable broker. Topics are named without the configured prefix throughout; `topic` adds it.

    Attributes:
        settings: the configuration it was reached with.
        bootstrap_servers: the address other clients (and processes) connect to.
        cluster_id: the cluster's id.
        is_embedded: whether it is librdkafka's mock cluster, in this process or another.
    """

    def __init__(
        self, settings: KafkaSettings, bootstrap_servers: str, embedded_cluster: Producer | None = None
    ) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.settings = settings
        self._timeout_s = settings.connect_timeout_s
        # The mock cluster lives exactly as long as the producer that created it.
        self._embedded_cluster = embedded_cluster
        self._errors: list[str] = []
        self._admin_client: AdminClient | None = None
        self._old_clients: list[Consumer] = []
        try:
            self._client = self._new_client()
        except KafkaException as error:
            raise BrokerError(f"kafka.security is refused: {_text(error)}") from error
        try:
            metadata = self._client.list_topics(timeout=self._timeout_s)
        except KafkaException as error:
            reason = self._reason(error)
            self._client.close()
            raise BrokerError(
                f"Kafka broker at {bootstrap_servers} cannot be reached within {self._timeout_s:g} s: "
                f"{reason}"
            ) from error
        self.cluster_id: str = metadata.cluster_id or ""
        self.is_embedded: bool = self.cluster_id.startswith(_MOCK_CLUSTER_PREFIX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the broker; an embedded one ends with its data."""
        for client in (self._client, *self._old_clients):
            client.close()
        self._embedded_cluster = None

    def topic(self, name: str) -> str:
        """Return the name of a topic on the broker: the configured prefix and `name`."""
        return self.settings.topic_prefix + name

    def producer_config(self) -> dict[str, Any]:
        """Return the options of an idempotent producer that retries for ever.

        A delivery that times out and is sent again can double a record, so no delivery ever times out; the
        caller bounds the number of messages instead.
        """
        return self._client_config() | {
            "enable.idempotence": True,
            "acks": "all",
            "message.timeout.ms": 0,
        }

    def consumer_config(self, group: str) -> dict[str, Any]:
        """Return the options of a consumer that never skips evicted data and commits nothing by itself."""
        config = self._client_config() | {
            "group.id": group,
            "auto.offset.reset": "error",
            "enable.auto.commit": False,
            # New topics may be unknown to the broker that a group member asks: by default it then has
            # nothing assigned, and asks again after five minutes.
            "topic.metadata.refresh.interval.ms": _METADATA_REFRESH_MS,
        }
        if self.is_embedded:
            # A mock cluster answers a fetch that found nothing only after its whole wait (500 ms by default),
            # also when records come meanwhile.
            config["fetch.wait.max.ms"] = _EMBEDDED_FETCH_WAIT_MS
        return config

    def ensure_topics(self, topics: Sequence[str] = ALL_TOPICS) -> None:
        """Create the topics that are missing; existing ones stay as they are.

        A mock cluster has no admin API: there, asking for a topic creates it, with 4 partitions.

        Args:
            topics: without prefix, all by default.

        Raises:
            BrokerError: the broker refuses to create one.
        """
        if self.is_embedded:
            self._auto_create(topics)
            return
        existing = self._client.list_topics(timeout=self._timeout_s).topics
        missing = [name for name in topics if self.topic(name) not in existing]
        if not missing:
            return
        created: dict[str, Future[None]] = self._admin().create_topics(
            [self._new_topic(name) for name in missing], operation_timeout=self._timeout_s
        )
        for name, future in created.items():
            try:
                future.result(self._timeout_s)
            except KafkaException as error:
                # Another process may be starting beside this one.
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise BrokerError(
                        f"Kafka broker at {self.bootstrap_servers} cannot create topic {name}: {_text(error)}"
                    ) from error
        self._await_topics(missing)

    def partitions(self, topic: str) -> int:
        """Return the number of partitions of `topic`.

        Raises:
            BrokerError: the topic does not exist, or the broker does not answer.
        """
        name = self.topic(topic)
        try:
            found = self._client.list_topics(name, timeout=self._timeout_s).topics[name]
        except KafkaException as error:
            raise self._unanswered(f"how many partitions {name} has", error) from error
        if found.error is not None:
            raise BrokerError(
                f"Kafka broker at {self.bootstrap_servers}: topic {name}: {_plain(found.error.str())}"
            )
        return len(found.partitions)

    def log_id(self, topic: str) -> str:
        """Return eight hex digits that identify the log of `topic`: others after the topic was recreated.

        They are a hash of the topic's id. A mock cluster's topics have none, and its own id is a memory
        address that its successor may get again; there the id is that of a marker topic.

        Raises:
            BrokerError: the topic does not exist, or the broker is too old to give topics an id.
        """
        ids = self.log_ids([topic], patience_s=_PATIENCE_S)
        if topic not in ids:
            raise BrokerError(f"Kafka broker at {self.bootstrap_servers} has no topic {self.topic(topic)}")
        return ids[topic]

    def log_ids(
        self, topics: Sequence[str], *, timeout_s: float | None = None, patience_s: float = 0.0
    ) -> dict[str, str]:
        """Return the `log_id` of several topics in one request; topics that do not exist are left out.

        Args:
            topics: without prefix.
            timeout_s: how long one answer may take, `connect_timeout_s` by default.
            patience_s: how long to ask again while the broker cannot answer.

        Raises:
            BrokerError: the broker does not answer, or is too old to give topics an id.
        """
        if self.is_embedded:
            identities = dict.fromkeys(topics, self._mock_identity())
        else:
            identities = self._topic_ids(topics, timeout_s or self._timeout_s, patience_s)
        return {
            topic: hashlib.sha256(identity.encode()).hexdigest()[:8] for topic, identity in identities.items()
        }

    def renew_clients(self) -> None:
        """Use new clients from now on: the present ones may have cached deleted logs.

        librdkafka takes the leader epoch of a recreated log for outdated, and never finds its leader.
        """
        # Another thread may be using the old one, so it is released at the end.
        self._old_clients.append(self._client)
        self._client = self._new_client()
        self._admin_client = None

    def offsets(self, topic: str, partition: int, *, patience_s: float = _PATIENCE_S) -> tuple[int, int]:
        """Return the first offset still kept, and the offset of the next record.

        Raises:
            BrokerError: the broker does not answer within `patience_s`, or has no such partition.
        """
        name = self.topic(topic)
        return self._ask(
            f"for the offsets of {name} partition {partition}",
            lambda: self._client.get_watermark_offsets(
                TopicPartition(name, partition), timeout=self._timeout_s, cached=False
            ),
            patience_s,
        )

    def end_offsets(self, topic: str, *, patience_s: float = _PATIENCE_S) -> dict[int, int]:
        """Return the offset of the next record of each partition of `topic`."""
        return {
            partition: self.offsets(topic, partition, patience_s=patience_s)[1]
            for partition in range(self.partitions(topic))
        }

    def current_cluster_id(self) -> str:
        """Return the present id of the cluster at the address; `cluster_id` is the first one.

        Raises:
            BrokerError: the broker does not answer.
        """
        answer: Future[Any] = self._admin().describe_cluster(request_timeout=self._timeout_s)
        try:
            # The request's own timeout comes first: it has the reason.
            return answer.result(2 * self._timeout_s).cluster_id or ""
        except KafkaException as error:
            raise self._unanswered("for its id", error) from error

    def has_topic(self, topic: str) -> bool:
        """Return whether the broker has `topic`. Unlike a request by name, this never creates it.

        Raises:
            BrokerError: the broker does not answer.
        """
        found = self._ask(
            "for its topics", lambda: self._client.list_topics(timeout=self._timeout_s), _PATIENCE_S
        )
        return self.topic(topic) in found.topics

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Return the offset that a consumer group has committed in each partition of `topic`, if any.

        Args:
            group: its name without the prefix; the group is not joined.
            topic: a topic's name without the prefix.

        Raises:
            BrokerError: the broker does not answer, or refuses.
        """
        consumer = Consumer(self.consumer_config(self.topic(group)))
        name = self.topic(topic)
        places = [TopicPartition(name, partition) for partition in range(self.partitions(topic))]
        try:
            answer = consumer.committed(places, timeout=self._timeout_s)
        except KafkaException as error:
            raise self._unanswered(f"for the offsets of {self.topic(group)}", error) from error
        finally:
            consumer.close()
        for place in answer:
            if place.error is not None:
                raise BrokerError(
                    f"Kafka broker at {self.bootstrap_servers}: {name}: {_plain(place.error.str())}"
                )
        return {place.partition: place.offset for place in answer if place.offset >= 0}

    def _client_config(self) -> dict[str, Any]:
        security = {key: secret.get_secret_value() for key, secret in self.settings.security.items()}
        return {**security, "bootstrap.servers": self.bootstrap_servers, "logger": LIBRARY_LOG}

    def _new_client(self) -> Consumer:
        return Consumer(
            self._client_config() | {"group.id": "cryptovol-metadata", "error_cb": self._on_error}
        )

    def _admin(self) -> AdminClient:
        if self._admin_client is None:
            self._admin_client = AdminClient(self._client_config())
        return self._admin_client

    def _new_topic(self, name: str) -> NewTopic:
        return NewTopic(
            self.topic(name),
            num_partitions=1 if name in _SINGLE_PARTITION_TOPICS else self.settings.partitions,
            replication_factor=-1,  # the broker's default
            config={"retention.ms": str(self.settings.retention_hours * 3_600_000)},
        )

    def _await_topics(self, names: list[str]) -> None:
        """Wait until the brokers have heard of new topics, which takes them a moment."""
        deadline_s = time.monotonic() + self._timeout_s
        for name in names:
            while True:
                try:
                    self.partitions(name)
                    break
                except BrokerError:
                    if time.monotonic() >= deadline_s:
                        raise
                    time.sleep(_RETRY_S)

    def _auto_create(self, topics: Sequence[str]) -> None:
        producer = Producer(self._client_config())
        for name in topics:
            producer.list_topics(self.topic(name), timeout=self._timeout_s)

    def _mock_identity(self) -> str:
        try:
            names = self._client.list_topics(timeout=self._timeout_s).topics
        except KafkaException as error:
            raise self._unanswered("for its topics", error) from error
        markers = [name for name in names if name.startswith(_MARKER)]
        return min(markers) if markers else _mark(Producer(self._client_config()), self._timeout_s)

    def _topic_ids(self, topics: Sequence[str], timeout_s: float, patience_s: float) -> dict[str, str]:
        names = {self.topic(topic): topic for topic in topics}

        def describe() -> dict[str, str]:
            described: dict[str, Future[Any]] = self._admin().describe_topics(
                TopicCollection(list(names)), request_timeout=timeout_s
            )
            found: dict[str, str] = {}
            for name, future in described.items():
                try:
                    # The request's own timeout comes first: it has the reason.
                    found[names[name]] = str(future.result(2 * timeout_s).topic_id)
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
            return found

        ids = self._ask(f"for topics {', '.join(names)}", describe, patience_s)
        if _ZERO_TOPIC_ID in ids.values():
            raise BrokerError(
                f"Kafka broker at {self.bootstrap_servers} has no topic ids; 2.8 or newer is needed"
            )
        return ids

    def _ask(self, question: str, ask: Callable[[], T], patience_s: float) -> T:
        """Ask until the broker answers: a restart of the broker must not end the caller.

        Raises:
            BrokerError: an error that does not pass, or one that lasts.
        """
        deadline_s = time.monotonic() + patience_s
        while True:
            try:
                return ask()
            except KafkaException as error:
                if error.args[0].code() not in ASK_AGAIN or time.monotonic() >= deadline_s:
                    raise self._unanswered(question, error) from error
            time.sleep(_RETRY_S)

    def _on_error(self, error: KafkaError) -> None:
        self._errors.append(error.str())

    def _reason(self, error: KafkaException) -> str:
        """Return librdkafka's cause of a timeout: connection refused, unknown host, bad password."""
        self._client.poll(0)
        causes = [text for text in self._errors if "brokers are down" not in text]
        return _plain(causes[0]) if causes else _text(error)

    def _unanswered(self, question: str, error: KafkaException) -> BrokerError:
        return BrokerError(
            f"Kafka broker at {self.bootstrap_servers} was asked {question} and answered: {_text(error)}"
        )


def _mark(producer: Producer, timeout_s: float) -> str:
    """Give a mock cluster an identity: a topic, created by a request, that every client sees."""
    marker = _MARKER + uuid.uuid4().hex
    producer.list_topics(marker, timeout=timeout_s)
    return marker


def _text(error: KafkaException) -> str:
    return _plain(error.args[0].str())


def _plain(text: str) -> str:
    """Return the cause in one of librdkafka's messages."""
    text = re.sub(r" \(after .*", "", text)
    text = re.sub(r"^\S+: (?=Connect to|Failed to resolve|SASL|SSL)", "", text)
    text = re.sub(r"^Connect to \S+ failed: ", "", text)
    return re.sub(r"^(Local|Broker): ", "", text)
