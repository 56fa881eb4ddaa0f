"""Where messages wait that the Kafka client has no room for: first in, first out, on disk beyond a few MiB.

The oldest and the newest messages stand in memory, what lies between in files without a name: whatever ends
this process, the system gives their room back. What a killed process had not sent is a recorded gap anyway,
so nothing is made durable here.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec

#: What a message costs beside its key and value, roughly.
_OVERHEAD_BYTES = 70
#: A file holds this much; as much stands in memory before it, and as much behind it.
CHUNK_BYTES = 4 * 1024 * 1024

#: Topic, key, value, and the number of the epoch it counts for.
Spilled = tuple[str, bytes, bytes, int]

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[Spilled])


class Spill:
    """A bounded queue of messages. Past its bound it still takes what it is given: its owner asks `is_full`.

    Args:
        folder: where files may stand, made when the first is written; None keeps all in memory.
        limit_bytes: it is full with this much; with 0, as soon as it holds anything.
        chunk_bytes: size of a file (tests).
    """

    def __init__(self, folder: Path | None, limit_bytes: int, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.limit_bytes = limit_bytes
        #: What is held now.
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
        """Whether nothing should be added; also where a file cannot be written and memory must not grow."""
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
        """The oldest message, which stays.

        Raises:
            IndexError: nothing is held.
        """
        if not self._oldest:
            self._load()
        return self._oldest[0]

    def pop(self) -> Spilled:
        """Take out the oldest message.

        Raises:
            IndexError: nothing is held.
        """
        message = self.first()
        self._oldest.popleft()
        self.count -= 1
        self.held_bytes -= _size(message)
        return message

    def write(self) -> None:
        """Bring the newest messages to a file where they are too many for memory; `error` says why not."""
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
        """Forget everything and give its room back."""
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
