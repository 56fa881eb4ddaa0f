"""A full disk: record the refusal, log it now and then, and wait until raw storage takes bytes."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ingestor.archive.errors import NoRoomError
from ingestor.archive.writer import probe_room

LOG = logging.getLogger(__name__)

#: How often writing is retried, and how often the wait is logged.
_RETRY_S = 2.0
_LOG_EVERY_S = 60.0


@dataclass(frozen=True)
class _Refusal:
    """The disk is full, until a file was stored again. Times are of the monotonic clock.

    Attributes:
        error: the last refusal.
        since_s: when the first attempt failed.
        refused_at_s: when the last attempt failed.
        logged_at_s: when it was last logged.
    """

    error: NoRoomError
    since_s: float
    refused_at_s: float
    logged_at_s: float


class FullDisk:
    """State of the space of raw storage; readable from any thread, changed by the archive's own.

    Args:
        raw_dir: root of raw storage.
    """

    def __init__(self, raw_dir: Path) -> None:
        self._raw_dir = raw_dir
        self._refusal: _Refusal | None = None

    @property
    def is_full(self) -> bool:
        """Whether the last attempt to store was refused."""
        return self._refusal is not None

    def refused_after(self, began_s: float) -> NoRoomError | None:
        """Return the refusal after `began_s` (monotonic clock); None where there was none."""
        refusal = self._refusal
        return refusal.error if refusal is not None and refusal.refused_at_s > began_s else None

    def wait(self, error: NoRoomError, stop: threading.Event) -> bool:
        """Wait until raw storage takes bytes.

        Args:
            error: the refusal that made the archive wait.
            stop: ends the wait.

        Returns:
            Whether there is room; False where `stop` was set first.
        """
        self._note_refusal(error)
        while not stop.wait(_RETRY_S):
            try:
                probe_room(self._raw_dir)
            except NoRoomError as again:
                self._note_refusal(again)
                continue
            return True
        return False

    def note_stored(self) -> None:
        """Note that a file was stored: if there was no room, there is now."""
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            for_s = time.monotonic() - refusal.since_s
            LOG.warning("raw storage has room again in %s, after %.0f s", self._raw_dir, for_s)

    def _note_refusal(self, error: NoRoomError) -> None:
        now_s = time.monotonic()
        known = self._refusal or _Refusal(error, now_s, now_s, -_LOG_EVERY_S)
        logged_at_s = known.logged_at_s
        if now_s - logged_at_s >= _LOG_EVERY_S:
            logged_at_s = now_s
            LOG.warning(
                "%s; reading waits for room in %s (tried every %g s), new records stay in Kafka meanwhile",
                error,
                self._raw_dir,
                _RETRY_S,
            )
        self._refusal = replace(known, error=error, refused_at_s=now_s, logged_at_s=logged_at_s)
