"""A name for this archive that a successor inherits.

The consumer group waits for a member that was killed until its session times out, unless a member of the
same name comes back. Names are numbered slots beside raw storage; a lock, which a kill releases, says who
holds one.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from ingestor import locks
from ingestor.archive.errors import ArchiveError
from ingestor.archive.layout import TEMPORARY

#: Folder of the locks of running featurizers, below ``_tmp`` beside ``features.parquet``.
FEATURIZERS = "featurizers"


class Slot:
    """Lock the first free slot of this machine, storage and group until the context ends.

    Args:
        raw_dir: root of raw storage.
        group: the consumer group.
        locks: folder of the locks below ``_tmp``.

    Raises:
        ArchiveError: the storage cannot be written.
    """

    def __init__(self, raw_dir: Path, group: str, locks: str = "") -> None:
        self._folder = raw_dir / TEMPORARY / locks
        self._host = socket.gethostname()
        self._group = group
        self._lock: IO[bytes] | None = None
        self.name = ""

    def __enter__(self) -> Self:
        identity = hashlib.sha256(f"{self._host} {self._folder.resolve()}".encode()).hexdigest()[:8]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for number in itertools.count():
                file = (self._folder / f"{self._group}-{self._host}-{number}.lock").open("ab")
                if locks.try_lock(file):
                    self._lock = file
                    self.name = f"{self._group}-{identity}-{number}"
                    break
                file.close()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ArchiveError(f"{self._folder} cannot be written: {reason}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()


def archive_runs(raw_dir: Path) -> bool:
    """Return whether an archive of the feed on this machine runs on this storage.

    It may still store promised offsets.

    It holds the lock of its name, or that of the storage if it uses the storage alone.

    Args:
        raw_dir: root of raw storage.

    Raises:
        OSError: a lock file cannot be opened.
    """
    return slot_held(raw_dir)


def slot_held(root: Path, folder: str = "") -> bool:
    """Return whether a process on this machine holds a slot, or another lock beside it.

    Args:
        root: as `Slot` got it.
        folder: of the locks, below ``_tmp``.

    Raises:
        OSError: a lock file cannot be opened.
    """
    return any(map(locks.is_locked, (root / TEMPORARY / folder).glob("*.lock")))
