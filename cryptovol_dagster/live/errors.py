"""What goes wrong in the live path, told in one line."""

from __future__ import annotations


class LiveError(Exception):
    """Live features cannot go on; the message is one line."""
