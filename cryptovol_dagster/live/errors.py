"""Errors of the live path; messages are one line."""

from __future__ import annotations

from ingestor.errors import CryptovolError


class LiveError(CryptovolError):
    """Live features cannot go on; the message is one line."""
