"""The sequence check: one counter a connection, over all channels, before any filtering.

The exchange numbers every frame it sends on a connection, acknowledgements and heartbeats included, from 0.
So a number that is skipped is a frame that was lost, whatever its channel was.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """Verdict on a frame's number, apart from a gap."""

    OK = "ok"
    #: At or below the newest number: seen before, or already recorded as missing.
    REPEAT = "repeat"


@dataclass(frozen=True)
class Gap:
    """Numbers that never came, both ends inclusive; the frame after them is in order."""

    from_sequence: int
    to_sequence: int

    @property
    def count(self) -> int:
        """Number of missing frames."""
        return self.to_sequence - self.from_sequence + 1


class SequenceTracker:
    """Follows the numbers of one connection. A new connection gets a new tracker."""

    def __init__(self) -> None:
        self._expected = 0

    @property
    def newest(self) -> int:
        """The highest number seen; -1 before the first frame."""
        return self._expected - 1

    def observe(self, sequence_num: int) -> Verdict | Gap:
        """Judge the next frame's number.

        Returns:
            `Verdict.OK`, a `Gap` in front of this frame, or `Verdict.REPEAT`: it must not be used again.
        """
        expected = self._expected
        if sequence_num < expected:
            return Verdict.REPEAT
        self._expected = sequence_num + 1
        return Verdict.OK if sequence_num == expected else Gap(expected, sequence_num - 1)
