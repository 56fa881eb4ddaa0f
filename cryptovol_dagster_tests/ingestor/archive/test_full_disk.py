"""Waiting for room without an archive: a disk that refuses for a while, and what is said of it."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest

from ingestor.archive import full_disk
from ingestor.archive.errors import NoRoomError
from ingestor.archive.full_disk import FullDisk

FULL = NoRoomError("raw storage cannot write x: No space left on device")


class Refusing:
    """Refuses the first attempts to write."""

    def __init__(self, refusals: int) -> None:
        self.left = refusals

    def __call__(self, raw_dir: Path) -> None:
        if self.left:
            self.left -= 1
            raise NoRoomError(f"still full, {self.left} left")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    monkeypatch.setattr(full_disk, "_RETRY_S", 0.01)
    monkeypatch.setattr(full_disk, "probe_room", Refusing(3))
    return FullDisk(tmp_path)


def test_it_waits_until_a_write_succeeds(disk: FullDisk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    before_s = time.monotonic()
    assert disk.wait(FULL, threading.Event())
    assert disk.is_full  # until a file was stored
    refused = disk.refused_after(before_s)
    assert str(refused) == "still full, 0 left"
    assert disk.refused_after(time.monotonic()) is None
    disk.note_stored()
    assert not disk.is_full
    first, second = (record.getMessage() for record in caplog.records)
    assert "No space left on device; reading waits for room in " in first
    assert "has room again" in second


def test_it_stops_waiting_when_told(disk: FullDisk) -> None:
    stop = threading.Event()
    stop.set()
    assert not disk.wait(FULL, stop)
    assert disk.refused_after(0.0) is FULL


def test_a_long_wait_is_logged_again(
    disk: FullDisk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_disk, "_LOG_EVERY_S", 0.0)
    assert disk.wait(FULL, threading.Event())
    assert len(caplog.records) == 4


def test_a_stored_file_says_nothing_where_there_was_room(
    disk: FullDisk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.note_stored()
    assert caplog.records == []
