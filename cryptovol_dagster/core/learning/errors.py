"""What can be wrong with rows to learn from."""

from __future__ import annotations

from ingestor.errors import CryptovolError


class LearningError(CryptovolError, ValueError):
    """The data cannot be learned from; the message is one line that says what and where."""


class DegenerateThreshold(LearningError):  # noqa: N818 - named for what it says
    """The spike threshold of a product does not separate anything (no movement, or ties without end)."""
