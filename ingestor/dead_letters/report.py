"""Report of the dead letters: a row for each class of reason, and the exported letters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingestor.dead_letters.letters import Letter, read_again
from ingestor.errors import CryptovolError
from ingestor.exchange.clock import ns_to_rfc3339


class ExportError(CryptovolError):
    """The letters cannot be written out; the message is one line."""


@dataclass
class ReasonSeen:
    """All letters of one class.

    Attributes:
        letters: how many.
        bytes: number of their received bytes.
        first_ns: receiving time of the oldest.
        last_ns: receiving time of the newest.
        connections: ids of their connections.
        readable_now: how many the present parser reads; None where that was not requested.
    """

    letters: int = 0
    bytes: int = 0
    first_ns: int = 0
    last_ns: int = 0
    connections: set[str] = field(default_factory=set)
    readable_now: int | None = None

    def add(self, letter: Letter) -> None:
        """Count one more."""
        self.first_ns = min(self.first_ns, letter.at_ns) if self.letters else letter.at_ns
        self.last_ns = max(self.last_ns, letter.at_ns) if self.letters else letter.at_ns
        self.letters += 1
        self.bytes += letter.whole_bytes
        self.connections.add(letter.connection_id)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        retried = {} if self.readable_now is None else {"readable_now": self.readable_now}
        return {
            "letters": self.letters,
            "bytes": self.bytes,
            "first": ns_to_rfc3339(self.first_ns),
            "last": ns_to_rfc3339(self.last_ns),
            "connections": len(self.connections),
            **retried,
        }


@dataclass
class DeadLetterReport:
    """The dead letters of a span.

    Attributes:
        raw_dir: where.
        reasons: by class, the commonest first once `survey` is done.
        shown: the first letters, as many as requested.
    """

    raw_dir: Path
    reasons: dict[str, ReasonSeen] = field(default_factory=dict)
    shown: list[Letter] = field(default_factory=list)

    @property
    def letters(self) -> int:
        """Letters of all classes."""
        return sum(seen.letters for seen in self.reasons.values())

    @property
    def readable_now(self) -> int:
        """Letters of all classes that the parser of today reads."""
        return sum(seen.readable_now or 0 for seen in self.reasons.values())

    def as_dict(self, *, show: bool) -> dict[str, Any]:
        """Return plain values, for JSON; with `show` the letters too."""
        shown = {"shown": [letter.as_dict() for letter in self.shown]} if show else {}
        return {
            "raw_dir": str(self.raw_dir),
            "letters": self.letters,
            "reasons": [{"class": name, **seen.as_dict()} for name, seen in self.reasons.items()],
            **shown,
        }


def survey(
    raw_dir: Path, letters: Iterable[Letter], *, keep: int, retry_at_ns: int | None, future_limit_ns: int
) -> DeadLetterReport:
    """Group letters by the class of their reason.

    Args:
        raw_dir: root of raw storage.
        letters: iterated once.
        keep: how many of the first to keep for showing.
        retry_at_ns: read each again, with this time as the present; None: do not.
        future_limit_ns: how far ahead of the clock a frame may be.
    """
    report = DeadLetterReport(raw_dir)
    for letter in letters:
        seen = report.reasons.setdefault(letter.reason_class, ReasonSeen())
        seen.add(letter)
        if retry_at_ns is not None:
            readable = read_again(letter, retry_at_ns, future_limit_ns) is None
            seen.readable_now = (seen.readable_now or 0) + readable
        if len(report.shown) < keep:
            report.shown.append(letter)
    report.reasons = dict(sorted(report.reasons.items(), key=lambda item: -item[1].letters))
    return report


def exporting(letters: Iterable[Letter], path: Path) -> Iterator[Letter]:
    """Yield letters, and write each to `path` as a line of JSON; the file appears after the last one.

    Raises:
        ExportError: it cannot be written; an earlier file is unchanged.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            for letter in letters:
                file.write(json.dumps(letter.as_dict()) + "\n")
                yield letter
        part.replace(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
