"""One archive for one raw storage: a second one is refused and told who holds it.

The lock is the kernel's, on a file beside raw storage, so it goes with its holder, also when that is killed;
what the file says only serves the message. Where a network file system does not carry such locks from one
machine to another, the claims of `writer.py` still keep every offset stored once.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from ingestor.archive.errors import ArchiveError
from ingestor.archive.layout import TEMPORARY, first_line
from ingestor.errors import USAGE


class StorageHeldError(ArchiveError):
    """Another archive holds the storage; the message names it and what to do."""

    exit_code = USAGE


class _Holder(msgspec.Struct, frozen=True):
    pid: int
    host: str
    since_ns: int

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since_ns // 1_000_000_000, UTC)
        return f"pid {self.pid} on {self.host} since {since:%Y-%m-%d %H:%M:%S} UTC"


class StorageLock:
    """Holds a raw storage for one archive, or for several that all say so; held until the context ends.

    Args:
        raw_dir: root of raw storage.
        shared: let others in that are shared as well.

    Raises:
        StorageHeldError: another archive holds it, or holds it for itself alone.
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
            fcntl.flock(file, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            refusal = self._refusal(file, error)
            file.close()
            raise refusal from error
        _sign(file)
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _refusal(self, file: IO[bytes], error: OSError) -> ArchiveError:
        if not isinstance(error, BlockingIOError):
            return ArchiveError(f"raw storage cannot lock {file.name}: {error.strerror}")
        return StorageHeldError(
            f"raw storage {self._raw_dir} has an archive already ({_holder(file)}): stop that one, or "
            "start both with --shared-archive to share a real broker's partitions"
        )


def _sign(file: IO[bytes]) -> None:
    holder = _Holder(os.getpid(), socket.gethostname(), time.time_ns())
    # The lock is what counts: on a full disk it is held without a name, and room is waited for later.
    with suppress(OSError):
        file.truncate(0)
        file.write(msgspec.json.encode(holder))


def _holder(file: IO[bytes]) -> str:
    """Who signed last: the holder, or of several that share it the one that came last."""
    try:
        file.seek(0)
        return str(msgspec.json.decode(file.read(), type=_Holder))
    except (OSError, msgspec.MsgspecError):
        return "it left no name"
