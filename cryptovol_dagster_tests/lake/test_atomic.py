"""A file is replaced as a whole and durably, or stays as it was."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from cryptovol_dagster.lake.atomic import atomic_writer, replace_file


def test_the_new_content_stands_alone_in_a_folder_that_is_created(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "part.parquet"
    with atomic_writer(path) as file:
        file.write(b"one ")
        file.write(b"two")
        assert not path.exists()
    assert path.read_bytes() == b"one two"
    replace_file(path, b"three")
    assert path.read_bytes() == b"three"
    assert list(path.parent.iterdir()) == [path]


def write_half(path: Path, error: BaseException) -> None:
    with atomic_writer(path) as file:
        file.write(b"half of the n")
        raise error


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_inside_leaves_the_old_file_and_no_litter(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "part.parquet"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        write_half(path, error)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_target_that_cannot_be_replaced_leaves_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_file(path, b"new")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_every_user_may_read_it_and_its_owner_write_it(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "part.parquet"
    before = os.umask(umask)
    try:
        replace_file(path, b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_content_is_on_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = tmp_path / "part.parquet", []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            calls.append("fsync of the folder")
        else:
            calls.append(
                f"fsync of {os.fstat(handle).st_size} bytes, {stat.filemode(os.fstat(handle).st_mode)}"
            )
        fsync(handle)

    def noted_replace(self: Path, target: Any) -> Path:
        assert self.parent == path.parent
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    replace_file(path, b"new")
    assert calls == ["fsync of 3 bytes, -rw-r--r--", "rename", "fsync of the folder"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_cannot_sync_folders_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fsync = os.fsync

    def refuses_folders(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuses_folders)
    path = tmp_path / "part.parquet"
    if code == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(code)):
            replace_file(path, b"new")
    else:
        replace_file(path, b"new")
    assert path.read_bytes() == b"new"
