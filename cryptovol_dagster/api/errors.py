"""What a caller of the API did that cannot be answered, said in one line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from ingestor.errors import CryptovolError


class ApiError(CryptovolError):
    """The question cannot be answered; the message says what exists and what to type."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that names the nearest known word, in parentheses; empty where none is near."""
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(word.lower().replace("/", "-"), by_lower, n=1, cutoff=0.75)
    return f" (did you mean {by_lower[near[0]]}?)" if near else ""
