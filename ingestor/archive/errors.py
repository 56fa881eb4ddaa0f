"""Errors of raw storage."""

from __future__ import annotations

from ingestor.errors import CryptovolError


class ArchiveError(CryptovolError):
    """Raw storage cannot be written or read; the message is one line with fault and place."""


class CollisionError(ArchiveError):
    """Another writer has stored from this offset on: drop the read records, and find the offset again."""


class NoRoomError(ArchiveError):
    """The disk is full, or the quota used up: the attempt left nothing behind and may be repeated."""
