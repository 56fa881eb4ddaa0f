"""The words of a dead letter: why bytes could not be read, safe to print, and grouped into classes.

A reason is for people and holds what varies (a byte's place, a time); its class holds what stays, so that a
million letters of one fault are one row.
"""

from __future__ import annotations

import re

_QUOTED_CHARACTERS = 64
_ENTRY = re.compile(r"([^:]+): event \d+, entry \d+: ")
_VARYING = (
    (re.compile(r" \(first \d+ of \d+ bytes\)$"), ""),
    (re.compile(r"event \d+, entry \d+"), "an entry"),
    (re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""), "'…'"),
    (re.compile(r"\bbyte \d+"), "byte N"),
    (re.compile(r"\b\d+ bytes\b"), "N bytes"),
    (re.compile(r"\[\d+\]"), "[N]"),
    (re.compile(r"\d+(?:\.\d+)? s ahead"), "N s ahead"),
)


def printable(text: str) -> str:
    r"""Escape what a terminal would act on or could not show: control characters, lone surrogates.

    >>> printable("bid\x1b[2J")
    'bid\\x1b[2J'
    """
    return text if text.isprintable() else "".join(map(_printable_character, text))


def quoted(text: str) -> str:
    """Quote a name or value of the exchange's, cut and safe to print."""
    cut = text if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]}…"
    return repr(printable(cut)) if cut.isprintable() else f"'{printable(cut)}'"


def entry_reason(channel: str, event_index: int, entry_index: int, reason: str) -> str:
    """Say why one entry of a frame is a dead letter; the rest of the frame is not."""
    return f"{channel}: event {event_index}, entry {entry_index}: {reason}"


def entry_channel(reason: str) -> str | None:
    """Name the channel of whose frame a letter is one entry; None for a letter that is a whole frame."""
    match = _ENTRY.match(reason)
    return match[1] if match else None


def reason_class(reason: str) -> str:
    """Reduce a reason to what is alike in all letters of that fault.

    >>> reason_class("ticker: event 0, entry 3: entry: Expected `object`, got `int`")
    'ticker: an entry: entry: Expected `object`, got `int`'
    """
    for pattern, replacement in _VARYING:
        reason = pattern.sub(replacement, reason)
    return reason


def _printable_character(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
