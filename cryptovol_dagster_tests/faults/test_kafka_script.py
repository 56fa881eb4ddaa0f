"""`make kafka` on a machine that lacks what it needs: one line that says what, and an exit code."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptovol_dagster_tests.brokers import SCRIPT
from cryptovol_dagster_tests.places import REPOSITORY

JAVA_17 = "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2"
TOOLS = ("bash", "cat", "cmp", "cp", "grep", "head", "mkdir", "ps", "rm", "sed", "tail")


class Machine:
    """A PATH with the usual tools and nothing else, and folders of its own for Kafka."""

    def __init__(self, folder: Path) -> None:
        self.path, self.directory, self.jars = (folder / name for name in ("bin", "kafka", "jars"))
        self.path.mkdir()
        for tool in TOOLS:
            self.path.joinpath(tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")

    def install(self, name: str, script: str) -> None:
        program = self.path / name
        program.write_text(f"#!/bin/bash\n{script}\n")
        program.chmod(0o755)

    def install_jars(self) -> None:
        """As if they had been fetched: the stamp is all that is looked at."""
        self.jars.mkdir()
        shutil.copy(SCRIPT.with_name("pom.xml"), self.jars)

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"PATH": str(self.path), "KAFKA_DIR": str(self.directory), "KAFKA_LIB": str(self.jars)}
        return subprocess.run(
            list(command), env=own | environment, text=True, capture_output=True, timeout=60, check=False
        )

    def failure(self, **environment: str) -> str:
        """Why `kafka.sh start` fails, in its one line."""
        result = self.run(SCRIPT, "start", **environment)
        assert result.returncode == 1, result
        assert not (self.directory / "broker.pid").exists()
        (line,) = result.stderr.splitlines()
        assert line.startswith("kafka: ")
        return line


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield str(listener.getsockname()[1])


def test_without_java(machine: Machine) -> None:
    assert "java is missing: install a Java 17 runtime" in machine.failure()
    # Nothing at all on the PATH is the same story.
    bare = machine.run("/bin/bash", SCRIPT, "start", PATH="")
    assert (bare.returncode, bare.stdout) == (1, "")
    assert bare.stderr == machine.run(SCRIPT, "start").stderr


def test_make_kafka_says_the_same(machine: Machine) -> None:
    make = shutil.which("make")
    assert make is not None
    result = machine.run(make, "-C", REPOSITORY, "--no-print-directory", "kafka")
    assert result.returncode == 2
    first, second = result.stderr.splitlines()
    assert first.startswith("kafka: java is missing")
    assert second.startswith("make: ***")


def test_with_a_java_that_cannot_do_it(machine: Machine) -> None:
    machine.install("java", "echo 'openjdk version \"11.0.2\" 2019-01-15' >&2")
    assert "java 11 is too old: Kafka 4 needs Java 17" in machine.failure()
    machine.install("java", "echo 'no JVM found' >&2; exit 1")
    assert "java does not run: no JVM found" in machine.failure()


def test_without_maven_or_without_its_repository(machine: Machine) -> None:
    machine.install("java", JAVA_17)
    assert "mvn is missing: install Maven" in machine.failure()
    machine.install("mvn", "echo '[ERROR] could not transfer artifact: unknown host'; exit 1")
    assert "Maven could not fetch the jars: [ERROR] could not transfer" in machine.failure()
    # The failed attempt left no stamp: the next one tries again.
    assert not (machine.jars / "pom.xml").exists()


def test_a_port_that_cannot_be_had(machine: Machine, taken_port: str) -> None:
    machine.install("java", JAVA_17)
    machine.install_jars()
    expected = f"port {taken_port} is taken by another program; choose one with KAFKA_PORT"
    assert expected in machine.failure(KAFKA_PORT=taken_port)
    # The controller's port is the next one.
    assert expected in machine.failure(KAFKA_PORT=str(int(taken_port) - 1))
    for port in ("kafka", "0", "65535", "123456", "9092; true"):
        assert f"KAFKA_PORT is '{port}': name a port" in machine.failure(KAFKA_PORT=port)


def test_a_folder_that_cannot_be_had(machine: Machine, tmp_path: Path) -> None:
    machine.install("java", JAVA_17)
    machine.install_jars()
    occupied = tmp_path / "occupied"
    occupied.write_text("not a folder")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    line = machine.failure(KAFKA_PORT=port, KAFKA_DIR=str(occupied / "kafka"))
    assert f"{occupied / 'kafka'} cannot be made: choose a folder with KAFKA_DIR" in line


def test_a_broker_that_ends_while_starting(machine: Machine) -> None:
    machine.install(
        "java",
        'case "$*" in *-version*) ' + JAVA_17 + " ;; *random-uuid*) echo id ;; *format*) ;; "
        "*) echo 'ERROR out of memory'; exit 1 ;; esac",
    )
    machine.install_jars()
    for tool in ("nohup", "sleep"):
        machine.path.joinpath(tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    result = machine.run(SCRIPT, "start", KAFKA_PORT=port)
    assert result.returncode == 1
    assert result.stderr == "kafka: the broker ended while starting: ERROR out of memory\n"
    assert machine.run(SCRIPT, "status").stdout == "kafka: not running\n"


def test_an_unknown_verb(machine: Machine) -> None:
    result = machine.run(SCRIPT, "restart", HOME=os.environ.get("HOME", "/"))
    assert result.returncode == 1
    assert result.stderr == f"kafka: usage: {SCRIPT} start|stop|status|wipe\n"
