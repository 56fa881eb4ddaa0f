"""What can be wrong with rows to learn from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestor.errors import CryptovolError

if TYPE_CHECKING:
    pass


class LearningError(CryptovolError, ValueError):
    """The data cannot be learned from; the message is one line that says what and where."""


class DegenerateThreshold(LearningError):  # noqa: N818 - named for what it says
    """The spike threshold of a product does not separate anything (no movement, or ties without end)."""
