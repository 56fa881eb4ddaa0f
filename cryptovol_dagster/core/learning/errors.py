"""Errors of rows to learn from."""

from __future__ import annotations

from ingestor.errors import CryptovolError


class LearningError(CryptovolError, ValueError):
    """The data cannot be learned from; the message is one line with fault and place."""


class DegenerateThreshold(LearningError):  # noqa: N818 - the name states the fact
    """The spike threshold of a product separates nothing (no movement, or too many equal values)."""
