"""Queue of messages that do not fit into the Kafka client: first in, first out, on disk beyond a few MiB.

The oldest and the newest messages are in memory, those between in files without a name: when this process
ends in any way, the system frees their space. Unsent messages of a killed process are a recorded gap anyway,
so nothing here is durable.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec

#: Approximate overhead of a message beside its key and value.
_OVERHEAD_BYTES = 70
#: Size of a file; as much is in memory before it, and as much after it.
CHUNK_BYTES = 4 * 1024 * 1024

#: Topic, key, value, and the number of the epoch it counts for.
Spilled = tuple[str, bytes, bytes, int]

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[Spilled])


class Spill:
    """A bounded queue of messages. It accepts messages beyond its bound: its owner checks `is_full`.

    Args:
        folder: folder of files, created with the first one; None keeps all in memory.
        limit_bytes: it is full with this many bytes; with 0, as soon as it has a message.
        chunk_bytes: size of a file (tests).
    """

    def __init__(self, folder: Path | None, limit_bytes: int, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.limit_bytes = limit_bytes
        #: Present content.
        self.count = 0
        self.held_bytes = 0
        #: Why the newest messages cannot be written to a file; empty while they can.
        self.error = ""
        self._folder = folder
        self._chunk_bytes = chunk_bytes
        self._oldest: deque[Spilled] = deque()
        self._files: deque[IO[bytes]] = deque()
        self._newest: list[Spilled] = []
        self._newest_bytes = 0

    def __len__(self) -> int:
        return self.count

    @property
    def is_full(self) -> bool:
        """Return whether nothing should be added; also where a file cannot be written and memory is full."""
        return bool(self.count) and (self.held_bytes >= self.limit_bytes or bool(self.error))

    def append(self, message: Spilled) -> None:
        """Add a message behind all others."""
        size = _size(message)
        self.count += 1
        self.held_bytes += size
        self._newest.append(message)
        self._newest_bytes += size
        if self._newest_bytes >= self._chunk_bytes:
            self.write()

    def put_back(self, messages: Iterable[Spilled]) -> None:
        """Put messages, oldest first, before all others."""
        messages = list(messages)
        self.count += len(messages)
        self.held_bytes += sum(map(_size, messages))
        self._oldest.extendleft(reversed(messages))

    def first(self) -> Spilled:
        """Return the oldest message, which stays.

        Raises:
            IndexError: the queue is empty.
        """
        if not self._oldest:
            self._load()
        return self._oldest[0]

    def pop(self) -> Spilled:
        """Remove and return the oldest message.

        Raises:
            IndexError: the queue is empty.
        """
        message = self.first()
        self._oldest.popleft()
        self.count -= 1
        self.held_bytes -= _size(message)
        return message

    def write(self) -> None:
        """Write the newest messages to a file where they are too many for memory; `error` has a failure."""
        if self._folder is None or self._newest_bytes < self._chunk_bytes:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (kept until it is read)
            try:
                _write_all(file, _ENCODER.encode(self._newest))
            except OSError:
                file.close()
                raise
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            self.error = f"{self._folder} cannot take spilled messages: {reason}"
            return
        self.error = ""
        self._files.append(file)
        self._newest, self._newest_bytes = [], 0

    def close(self) -> None:
        """Drop all messages and free their space."""
        while self._files:
            self._files.popleft().close()
        self._oldest.clear()
        self._newest, self._newest_bytes = [], 0
        self.count = self.held_bytes = 0

    def _load(self) -> None:
        if self._files:
            with self._files.popleft() as file:
                file.seek(0)
                self._oldest.extend(_DECODER.decode(file.read()))
            return
        self._oldest.extend(self._newest)
        self._newest, self._newest_bytes = [], 0
        self.error = ""


def _size(message: Spilled) -> int:
    return len(message[1]) + len(message[2]) + _OVERHEAD_BYTES


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]  # a nearly full disk takes a part before it refuses
