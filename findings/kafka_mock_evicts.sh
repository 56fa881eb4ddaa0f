#!/usr/bin/env bash
# Library:  librdkafka's mock cluster, in confluent-kafka 2.16.1
# Expected: An acknowledged record can be read, or its producer is told of a failure.
# Happens:  The mock cluster keeps about 5 MiB a partition and drops older records without an error.
# For us:   The recorder's embedded broker is this cluster: acknowledged records that are not yet
#           archived stay below 2 MiB a partition.
set -euo pipefail
VERSION=${VERSION:-2.16.1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "confluent-kafka==$VERSION"

env/bin/python - <<'PYTHON'
import sys

import confluent_kafka as kafka

RECORDS, SIZE = 20_000, 600
failed, acknowledged = [], []
producer = kafka.Producer(
    {"test.mock.num.brokers": 1, "acks": "all", "enable.idempotence": True, "log_level": 0}
)
broker = next(iter(producer.list_topics(timeout=10).brokers.values()))
for _ in range(RECORDS):
    producer.produce(
        "t", bytes(SIZE), partition=0, on_delivery=lambda e, m: (failed if e else acknowledged).append(m)
    )
    producer.poll(0)
producer.flush(60)

consumer = kafka.Consumer(
    {"bootstrap.servers": f"{broker.host}:{broker.port}", "group.id": "g", "log_level": 0}
)
consumer.assign([kafka.TopicPartition("t", 0, kafka.OFFSET_BEGINNING)])
offsets = []
while not offsets or offsets[-1] < RECORDS - 1:
    message = consumer.poll(10)
    assert message is not None and message.error() is None, message
    offsets.append(message.offset())

print(f"confluent-kafka {kafka.__version__}, librdkafka {kafka.libversion()[0]}")
print(f"expected: {len(acknowledged):,} acknowledged records of {SIZE} bytes, none failed, can be read")
print(f"happened: {len(failed)} failed, {len(offsets):,} can be read, the first has offset {offsets[0]:,}")
if failed or len(acknowledged) != RECORDS or len(offsets) == RECORDS:
    sys.exit("changed: acknowledged records are kept, or their loss is reported")
PYTHON
