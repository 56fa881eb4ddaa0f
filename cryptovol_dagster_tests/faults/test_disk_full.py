"""A full disk: the archive waits, holds nothing, says so, and stores every offset once when there is room."""

from __future__ import annotations

import errno
import logging
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from confluent_kafka import Producer

from cryptovol_dagster_tests.faults.conservation import assert_exactly_once, raw_files
from cryptovol_dagster_tests.ingestor.archive.messages import TEN_NS, tick
from cryptovol_dagster_tests.ingestor.archive.test_consumer import wait_for
from cryptovol_dagster_tests.ingestor.feed.support import frame
from cryptovol_dagster_tests.ingestor.verbs.conftest import served
from ingestor.archive import full_disk
from ingestor.archive.consumer import Archive
from ingestor.archive.errors import ArchiveError, NoRoomError
from ingestor.envelope import TICKS
from ingestor.kafka.broker import Broker
from ingestor.recorder import IngestOptions, run_ingest
from ingestor.settings.sections import IngestSettings, RawFormat, Settings, StorageSettings

MEBIBYTE = 1 << 20


class Disk:
    """Refuses names and fsyncs of raw storage while it is `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = threading.Event()
        self.refusals = 0
        self.code = errno.ENOSPC
        for call in ("link", "fsync"):
            monkeypatch.setattr(os, call, self._refusing(getattr(os, call)))

    def _refusing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if self.full.is_set():
                self.refusals += 1
                raise OSError(self.code, os.strerror(self.code))
            return real(*args, **options)

        return call


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(full_disk, "_RETRY_S", 0.05)
    return Disk(monkeypatch)


def send(broker: Broker, values: list[bytes], partition: int = 0) -> None:
    producer = Producer(broker.producer_config())
    for value in values:
        producer.produce(broker.topic(TICKS), value, partition=partition)
    assert producer.flush(10) == 0


def noise(count: int, seed: int) -> list[bytes]:
    """Ticks that do not compress."""
    generator = random.Random(seed)
    return [
        tick(TEN_NS + i, i, entry=b'"%s"' % generator.randbytes(250).hex().encode()) for i in range(count)
    ]


def temporary_files(raw_dir: Path) -> list[Path]:
    return [path for path in raw_dir.rglob("_tmp/*") if path.suffix != ".lock"]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "room" in record.getMessage()]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_it_waits_for_room_and_goes_on(
    any_broker: Broker, tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    caplog.set_level(logging.WARNING)
    storage = StorageSettings(data_dir=tmp_path, flush_s=0.05)
    archive = Archive(any_broker, storage, closed_after_s=120)
    archive.start()
    send(any_broker, noise(50, 1))
    wait_for(lambda: archive.stored_offsets().get((TICKS, 0)) == 50)
    disk.code = code
    disk.full.set()
    for partition in range(3):
        send(any_broker, noise(500, partition), partition)
    wait_for(lambda: disk.refusals > 5)
    assert archive.error is None
    assert len(raw_files(storage.raw_dir)) == len(raw_files(storage.raw_dir, TICKS)) >= 1
    assert archive.stored_offsets()[TICKS, 0] == 50
    wait_for(lambda: temporary_files(storage.raw_dir) == [])
    (line,) = said(caplog)
    assert os.strerror(code) in line
    assert f"waits for room in {storage.raw_dir}" in line
    disk.full.clear()
    archive.stop()
    assert assert_exactly_once(any_broker, storage.raw_dir) == 1_550
    assert [line.split(",")[0] for line in said(caplog)[1:]] == [
        f"raw storage has room again in {storage.raw_dir}"
    ]
    assert temporary_files(storage.raw_dir) == []


def test_it_is_said_again_after_a_while(
    embedded_broker: Broker,
    tmp_path: Path,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(full_disk, "_LOG_EVERY_S", 0.2)
    archive = Archive(embedded_broker, StorageSettings(data_dir=tmp_path, flush_s=0.05), closed_after_s=120)
    archive.start()
    disk.full.set()
    send(embedded_broker, noise(5, 1))
    wait_for(lambda: len(said(caplog)) >= 3)
    assert disk.refusals > len(said(caplog))
    disk.full.clear()
    archive.stop()
    assert_exactly_once(embedded_broker, tmp_path / "raw")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_what_waiting_does_not_mend_ends_it(
    embedded_broker: Broker, tmp_path: Path, disk: Disk, code: int
) -> None:
    archive = Archive(embedded_broker, StorageSettings(data_dir=tmp_path, flush_s=0.05), closed_after_s=120)
    archive.start()
    disk.code = code
    disk.full.set()
    send(embedded_broker, noise(5, 1))
    wait_for(lambda: archive.error is not None)
    with pytest.raises(ArchiveError, match=f"cannot write .*: {os.strerror(code)}"):
        archive.stop()


def test_a_clean_stop_says_what_is_not_stored(any_broker: Broker, tmp_path: Path, disk: Disk) -> None:
    archive = Archive(any_broker, StorageSettings(data_dir=tmp_path, flush_s=0.05), closed_after_s=120)
    archive.start()
    send(any_broker, noise(5, 1))
    wait_for(lambda: archive.stored_offsets().get((TICKS, 0)) == 5)
    disk.full.set()
    send(any_broker, noise(7, 2))
    wait_for(lambda: disk.refusals > 0)
    fate = "lost with the embedded broker" if any_broker.is_embedded else "Kafka keeps them"
    expected = f"No space left on device; 7 records of 1 partitions are not stored.* offset 5 to 11; .*{fate}"
    with pytest.raises(NoRoomError, match=expected) as caught:
        archive.stop()
    assert "\n" not in str(caught.value)


def test_the_recorder_ends_with_an_error_when_stopped_on_a_full_disk(tmp_path: Path, disk: Disk) -> None:
    settings = Settings(
        storage=StorageSettings(data_dir=tmp_path, flush_s=0.05), ingest=IngestSettings(checkpoint_s=1)
    )
    disk.full.set()

    def script(socket: Any) -> None:
        for number in range(200):
            socket.send(frame(number))
        socket.close(1000)

    with (
        served(script) as url,
        pytest.raises(NoRoomError, match=r"records of \d+ partitions are not stored"),
    ):
        run_ingest(settings, IngestOptions(url=url, until_closed=True))
    assert raw_files(settings.storage.raw_dir) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "cryptovol-test", str(folder)], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("mounting a small file system needs root and the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("raw_format", get_args(RawFormat))
def test_a_truly_full_disk(
    embedded_broker: Broker,
    small_disk: Path,
    raw_format: RawFormat,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(full_disk, "_RETRY_S", 0.05)
    storage = StorageSettings(data_dir=small_disk, flush_s=0.1, raw_format=raw_format)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 * MEBIBYTE + MEBIBYTE // 2))
    archive = Archive(embedded_broker, storage, closed_after_s=120)
    archive.start()
    for partition in range(3):
        send(embedded_broker, noise(700, partition), partition)
    wait_for(lambda: bool(said(caplog)))
    assert archive.error is None
    wait_for(lambda: temporary_files(storage.raw_dir) == [])
    ballast.unlink()
    archive.stop()
    assert assert_exactly_once(embedded_broker, storage.raw_dir) == 2_100
    assert "has room again" in said(caplog)[-1]
    assert temporary_files(storage.raw_dir) == []
