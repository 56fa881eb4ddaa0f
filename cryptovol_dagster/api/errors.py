"""What a caller of the API did that cannot be answered, said in one line."""

from __future__ import annotations

from ingestor.errors import CryptovolError


class ApiError(CryptovolError):
    """The question cannot be answered; the message says what exists and what to type."""
