#!/usr/bin/env bash
# Library:  librdkafka's mock cluster, in confluent-kafka 2.16.1
# Expected: A read_committed consumer sees no record of an aborted transaction.
# Happens:  The consumer sees the aborted record like a committed one, though every transactional
#           call succeeds.
# For us:   Nothing about exactly-once is tested on the embedded broker; tests that need it start a
#           real Kafka.
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

owner = kafka.Producer({"test.mock.num.brokers": 1, "log_level": 0})
broker = next(iter(owner.list_topics(timeout=10).brokers.values()))
client = {"bootstrap.servers": f"{broker.host}:{broker.port}", "log_level": 0}
producer = kafka.Producer(client | {"transactional.id": "x"})
producer.init_transactions(30)
for value, end in ((b"aborted", producer.abort_transaction), (b"committed", producer.commit_transaction)):
    producer.begin_transaction()
    producer.produce("t", value, partition=0)
    producer.flush(30)
    end(30)

consumer = kafka.Consumer(client | {"group.id": "g", "isolation.level": "read_committed"})
consumer.assign([kafka.TopicPartition("t", 0, kafka.OFFSET_BEGINNING)])
seen = []
while b"committed" not in seen:
    message = consumer.poll(10)
    assert message is not None and message.error() is None, message
    seen.append(message.value())

print(f"confluent-kafka {kafka.__version__}, librdkafka {kafka.libversion()[0]}")
print("expected: the read_committed consumer sees [b'committed']")
print(f"happened: it sees {seen}")
if b"aborted" not in seen:
    sys.exit("changed: aborted records are hidden from a read_committed consumer")
PYTHON
