"""Kafka errors that pass by themselves, and errors of a member whose place another consumer took."""

from __future__ import annotations

from confluent_kafka import KafkaError

#: Errors of one broker or of a slow reader that librdkafka recovers from by itself.
PASSING_ERRORS = (
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._MAX_POLL_EXCEEDED,
)

#: The topic or partition does not exist for now. It passes for a reader that waits for the topic's successor.
TOPIC_GONE = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
)

#: The broker treats another consumer as the member of this name. Nothing else is fatal to a consumer.
FENCED = (KafkaError.FENCED_INSTANCE_ID, KafkaError._FATAL)

#: Temporary answers of a broker that is starting, or moving a partition.
ASK_AGAIN = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError._TRANSPORT,
    KafkaError._TIMED_OUT,
    KafkaError._ALL_BROKERS_DOWN,
    # A broker that has just started lists topics before their partitions have a leader.
    KafkaError._UNKNOWN_PARTITION,
)
