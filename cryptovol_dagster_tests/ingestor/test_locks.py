"""Locks on files, within one process: each open file is a holder of its own."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

from ingestor import locks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.lock"
    path.touch()
    return path


def test_an_exclusive_lock_keeps_everybody_out_until_its_file_is_closed(path: Path) -> None:
    with path.open("ab") as first, path.open("ab") as second:
        assert locks.try_lock(first)
        assert not locks.try_lock(second)
        assert not locks.try_lock(second, shared=True)
        assert locks.is_locked(path)
        first.close()
        assert locks.try_lock(second)
    assert not locks.is_locked(path)


def test_shared_locks_admit_each_other_and_nobody_else(path: Path) -> None:
    with path.open("ab") as first, path.open("ab") as second, path.open("ab") as third:
        assert locks.try_lock(first, shared=True)
        assert locks.try_lock(second, shared=True)
        assert not locks.try_lock(third)
        assert not locks.is_locked(path)  # by one alone


def test_a_lock_is_waited_for(path: Path) -> None:
    with path.open("ab") as first, path.open("ab") as second:
        locks.lock(first)
        waiting = threading.Thread(target=locks.lock, args=(second,))
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        first.close()
        waiting.join(10)
        assert not waiting.is_alive()


def test_a_lock_says_who_holds_it(path: Path) -> None:
    with path.open("a+b", buffering=0) as file:
        assert locks.read_holder(file) is None
        file.write(b"torn")
        assert locks.read_holder(file) is None
        locks.write_holder(file)
        holder = locks.read_holder(file)
    assert holder is not None
    assert holder.pid == os.getpid()
    assert re.fullmatch(r"pid \d+ on \S+ since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", str(holder))


def test_a_lock_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        locks.is_locked(tmp_path / "missing.lock")
