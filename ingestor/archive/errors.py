"""What can go wrong with raw storage."""

from __future__ import annotations

from ingestor.errors import CryptovolError


class ArchiveError(CryptovolError):
    """Raw storage cannot be written or read; the message is one line that says what and where."""


class CollisionError(ArchiveError):
    """Another writer has stored from this offset on: drop what was read, look again where to go on."""


class NoRoomError(ArchiveError):
    """The disk is full, or the quota used up: nothing of the attempt is left, and it may be tried again."""
