"""Advisory locks on files: exclusive or shared, blocking or not, with a record of the holder.

A lock is the kernel's, so it ends with its holder, also when that is killed. It lasts as long as the open
file that took it. The record of its holder is only used in messages. Some network file systems do not
carry such locks from one machine to another.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec

from ingestor.times import NS


class Holder(msgspec.Struct, frozen=True):
    """Holder of a lock.

    Attributes:
        pid: process id.
        host: name of its machine.
        since_ns: when it took the lock (Unix time).
    """

    pid: int
    host: str
    since_ns: int

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since_ns // NS, UTC)
        return f"pid {self.pid} on {self.host} since {since:%Y-%m-%d %H:%M:%S} UTC"


def lock(file: IO[Any]) -> None:
    """Lock an open file exclusively; wait while others hold it.

    Raises:
        OSError: the file system has no locks.
    """
    fcntl.flock(file, fcntl.LOCK_EX)


def try_lock(file: IO[Any], *, shared: bool = False) -> bool:
    """Lock an open file unless another lock forbids it.

    Args:
        file: keeps the lock until it is closed.
        shared: admit others that are shared as well.

    Returns:
        Whether it is locked now.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Return whether a file has an exclusive lock.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """
    with path.open("rb") as file:
        return not try_lock(file, shared=True)


def write_holder(file: IO[bytes]) -> None:
    """Write this process into a locked, unbuffered file opened for appending.

    The lock is what counts: on a full disk it is held without a record.
    """
    holder = Holder(os.getpid(), socket.gethostname(), time.time_ns())
    with suppress(OSError):
        file.truncate(0)
        file.write(msgspec.json.encode(holder))


def read_holder(file: IO[bytes]) -> Holder | None:
    """Return the last record: the holder, or the last one of several that share the lock.

    Returns:
        None where nothing readable was written.
    """
    try:
        file.seek(0)
        return msgspec.json.decode(file.read(), type=Holder)
    except (OSError, msgspec.MsgspecError):
        return None
