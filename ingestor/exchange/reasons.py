"""The words of a dead letter: why bytes could not be read, safe to print, and grouped into classes.

A reason is for readers and contains variable parts (a byte's place, a time); its class is constant, so that a
million letters of one fault are one row.
"""

from __future__ import annotations

import re

from ingestor.exchange.messages import TICKER, TRADES

_QUOTED_CHARACTERS = 64
_ENTRY = re.compile(rf"({TICKER}|{TRADES}): event (\d+), entry (\d+): ")
_CUT = re.compile(r" \(first \d+ of (\d+) bytes\)$")
_VARYING = (
    (_CUT, ""),
    (re.compile(r"event \d+, entry \d+"), "an entry"),
    (re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""), "'…'"),
    (re.compile(r"\bbyte \d+"), "byte N"),
    (re.compile(r"\b\d+ bytes\b"), "N bytes"),
    (re.compile(r"\[\d+\]"), "[N]"),
    (re.compile(r"\d+(?:\.\d+)? s ahead"), "N s ahead"),
)


def printable(text: str) -> str:
    r"""Escape characters that a terminal interprets or cannot show: control characters, lone surrogates.

    >>> printable("bid\x1b[2J")
    'bid\\x1b[2J'
    """
    return text if text.isprintable() else "".join(map(_printable_character, text))


def quoted(text: str) -> str:
    """Quote a name or value of the exchange's, cut and safe to print."""
    cut = text if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]}…"
    return repr(printable(cut)) if cut.isprintable() else f"'{printable(cut)}'"


def entry_reason(channel: str, event_index: int, entry_index: int, reason: str) -> str:
    """Return the reason of a dead letter that is one entry of a frame."""
    return f"{channel}: event {event_index}, entry {entry_index}: {reason}"


def entry_place(reason: str) -> tuple[str, int, int] | None:
    """Return (channel, event, entry) of a letter that is one entry; None for a whole frame."""
    match = _ENTRY.match(reason)
    return (match[1], int(match[2]), int(match[3])) if match else None


def cut_reason(reason: str, kept_bytes: int, whole_bytes: int) -> str:
    """Add to a reason that only the beginning of a letter's bytes was kept."""
    return f"{reason} (first {kept_bytes} of {whole_bytes} bytes)"


def cut_from(reason: str) -> int | None:
    """Return the number of received bytes of a letter that was cut; None for a whole one."""
    match = _CUT.search(reason)
    return int(match[1]) if match else None


def reason_class(reason: str) -> str:
    """Return the class of a reason: the part that all letters of that fault share.

    >>> reason_class("ticker: event 0, entry 3: entry: Expected `object`, got `int`")
    'ticker: an entry: entry: Expected `object`, got `int`'
    """
    for pattern, replacement in _VARYING:
        reason = pattern.sub(replacement, reason)
    return reason


def _printable_character(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
