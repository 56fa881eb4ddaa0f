"""Errors of calls of the API; messages are one line."""

from __future__ import annotations

from ingestor.errors import CryptovolError


class ApiError(CryptovolError):
    """The call cannot be answered; the message contains what exists and what to type."""
