"""A second archive of one raw storage is refused, and told who holds it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from ingestor.archive.errors import ArchiveError
from ingestor.archive.storage_lock import StorageHeldError, StorageLock

HOLD = (
    "import sys, pathlib\n"
    "from ingestor.archive.storage_lock import StorageLock\n"
    "with StorageLock(pathlib.Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


def test_the_second_is_refused_with_the_holder_named(tmp_path: Path) -> None:
    with StorageLock(tmp_path), pytest.raises(StorageHeldError) as caught, StorageLock(tmp_path):
        pass
    line = str(caught.value)
    assert line.startswith(f"raw storage {tmp_path} has an archive already (pid {os.getpid()} on ")
    assert socket.gethostname() in line
    assert "stop that one, or start both with --shared-archive" in line
    assert caught.value.exit_code == 2


def test_who_ended_holds_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        with StorageLock(tmp_path):
            pass
    with StorageLock(tmp_path / "another"), StorageLock(tmp_path):
        pass


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(StorageHeldError, match=f"pid {process.pid} "), StorageLock(tmp_path):
            pass
        process.kill()
        process.wait()
        with StorageLock(tmp_path):
            pass


@pytest.mark.parametrize(
    ("holders", "newcomer", "refused"),
    [((True,), True, False), ((True, True), True, False), ((True,), False, True), ((False,), True, True)],
)
def test_only_those_who_all_say_so_share(
    tmp_path: Path, holders: tuple[bool, ...], newcomer: bool, refused: bool
) -> None:
    with ExitStack() as stack:
        for shared in holders:
            stack.enter_context(StorageLock(tmp_path, shared=shared))
        if refused:
            with pytest.raises(StorageHeldError):
                stack.enter_context(StorageLock(tmp_path, shared=newcomer))
        else:
            stack.enter_context(StorageLock(tmp_path, shared=newcomer))


def test_a_holder_without_a_name_is_refused_for_all_that(tmp_path: Path) -> None:
    with StorageLock(tmp_path):
        (tmp_path / "_tmp" / "archive.lock").write_bytes(b"")
        with pytest.raises(StorageHeldError, match="it wrote no name"), StorageLock(tmp_path):
            pass


def test_an_unwritable_storage_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("in the way")
    with (
        pytest.raises(ArchiveError, match=r"raw storage cannot write .*_tmp: "),
        StorageLock(tmp_path / "raw"),
    ):
        pass
