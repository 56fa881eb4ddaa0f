"""One archive for one raw storage: a second one is refused, and its error names the holder.

The lock is on a file beside raw storage (`ingestor/locks.py`). Where a network file system does not carry
such locks from one machine to another, the claims of `writer.py` still keep every offset stored once.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from ingestor import locks
from ingestor.archive.errors import ArchiveError
from ingestor.archive.layout import TEMPORARY
from ingestor.errors import USAGE, first_line


class StorageHeldError(ArchiveError):
    """Another archive holds the storage; the message names the archive and what to do."""

    exit_code = USAGE


class StorageLock:
    """Lock a raw storage for one archive, or for several shared ones, until the context ends.

    Args:
        raw_dir: root of raw storage.
        shared: allow others that are shared as well.

    Raises:
        StorageHeldError: another archive holds it, or holds it exclusively.
        ArchiveError: the storage cannot be written.
    """

    def __init__(self, raw_dir: Path, *, shared: bool = False) -> None:
        self._raw_dir = raw_dir
        self._shared = shared
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        path = self._raw_dir / TEMPORARY / "archive.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b", buffering=0)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else first_line(error)
            raise ArchiveError(f"raw storage cannot write {path.parent}: {reason}") from error
        try:
            is_locked = locks.try_lock(file, shared=self._shared)
        except OSError as error:
            file.close()
            raise ArchiveError(f"raw storage cannot lock {file.name}: {error.strerror}") from error
        if not is_locked:
            with file:
                raise self._refusal(file)
        locks.write_holder(file)
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _refusal(self, file: IO[bytes]) -> StorageHeldError:
        holder = locks.read_holder(file) or "it wrote no name"
        return StorageHeldError(
            f"raw storage {self._raw_dir} has an archive already ({holder}): stop that one, or "
            "start both with --shared-archive to share a real broker's partitions"
        )
