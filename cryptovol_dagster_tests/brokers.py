"""Brokers for tests: the embedded one, and a real Kafka, started once a session by ``kafka.sh``."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptovol_dagster_tests.places import REPOSITORY
from ingestor import locks
from ingestor.kafka.broker import Broker, connect
from ingestor.settings.sections import KafkaSettings

SCRIPT = REPOSITORY / "docker" / "kafka" / "kafka.sh"
JARS = REPOSITORY / ".kafka" / "lib"

#: Names a running broker to use instead of starting one.
ENV_KAFKA = "CRYPTOVOL_TEST_KAFKA"


@dataclass(frozen=True)
class KafkaInstance:
    """A Kafka of its own, in its own folder."""

    directory: Path
    port: int

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def run(self, verb: str) -> subprocess.CompletedProcess[str]:
        """Run the script: start, stop, status or wipe."""
        environment = os.environ | {
            "KAFKA_DIR": str(self.directory),
            "KAFKA_PORT": str(self.port),
            "KAFKA_LIB": str(JARS),
        }
        # The broker outlives the script, so its output must not be a pipe that somebody waits on.
        return subprocess.run([SCRIPT, verb], env=environment, text=True, capture_output=True, timeout=180)

    def start(self) -> None:
        result = self.run("start")
        assert result.returncode == 0, result.stderr

    def kill(self) -> None:
        """End it as a power cut would."""
        os.kill(int((self.directory / "broker.pid").read_text()), signal.SIGKILL)


def new_instance(directory: Path) -> KafkaInstance:
    """An instance on free ports, not started; skips where this machine cannot run one."""
    if shutil.which("java") is None:
        pytest.skip(f"real Kafka needs a Java 17 runtime (or name a broker in {ENV_KAFKA})")
    if shutil.which("mvn") is None and not (JARS / "pom.xml").exists():
        pytest.skip(f"real Kafka needs Maven to fetch its jars (or name a broker in {ENV_KAFKA})")
    return KafkaInstance(directory, _two_free_ports())


@pytest.fixture(scope="session")
def real_kafka(shared_by_workers: Path) -> Iterator[str]:
    """Address of a real Kafka: the one named in the environment, or one started for this session.

    The first worker that needs it starts it, the last one that needed it stops it.
    """
    named = os.environ.get(ENV_KAFKA)
    if named:
        yield named
        return
    folder = shared_by_workers / "kafka"
    folder.mkdir(exist_ok=True)
    with (folder / "users.lock").open("a+") as users:
        with _alone(folder):
            instance = _running_in(folder)
            assert locks.try_lock(users, shared=True)
        yield instance.bootstrap_servers
        with _alone(folder):
            if locks.try_lock(users):  # nobody else uses it
                (folder / "port").unlink()
                instance.run("stop")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other workers from starting or stopping the broker of a folder."""
    with (folder / "changes.lock").open("a+") as file:
        locks.lock(file)
        yield


def _running_in(folder: Path) -> KafkaInstance:
    """Return the broker of a folder, which notes its port there while it runs."""
    port = folder / "port"
    if port.exists():
        return KafkaInstance(folder, int(port.read_text()))
    instance = new_instance(folder)
    instance.start()
    port.write_text(str(instance.port))
    return instance


@pytest.fixture
def embedded_broker() -> Iterator[Broker]:
    """A fresh embedded broker with its topics."""
    with connect(KafkaSettings()) as broker:
        broker.ensure_topics()
        yield broker


@pytest.fixture
def real_broker(real_kafka: str) -> Iterator[Broker]:
    """A real broker with topics that no other test has."""
    settings = KafkaSettings(bootstrap_servers=real_kafka, topic_prefix=f"test-{uuid.uuid4().hex[:8]}.")
    with connect(settings) as broker:
        broker.ensure_topics()
        yield broker


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.kafka)])
def any_broker(request: pytest.FixtureRequest) -> Broker:
    """The embedded broker, then the real one."""
    return request.getfixturevalue(f"{request.param}_broker")


def _two_free_ports() -> int:
    """A free port whose successor is free too (the controller's).

    Below the ports that the system hands out by itself: a broker takes seconds to start, and any connection
    made meanwhile could get one of those.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
