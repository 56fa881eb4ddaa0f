"""Files that are whole or absent: written beside their path, then renamed in one step."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

#: Readable by every user of the lake; a temporary file's 0600 would lock them out.
_MODE = 0o644


@contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that replaces `path` when the block ends, durably.

    Readers see the old file or the new one, never a mixture. The order is: write to a temporary file beside
    `path`, fsync, rename, fsync of the folder. After an error in the block `path` is as it was.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), _MODE)
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where its file system can."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        # Some network and FUSE file systems lack this call; the file itself is written already.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(folder)


def replace_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content`; see `atomic_writer`.

    Raises:
        OSError: the folder cannot be written.
    """
    with atomic_writer(path) as file:
        file.write(content)
