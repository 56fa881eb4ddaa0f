"""How long to wait before the next connection: exponential with full jitter, so that clients spread out."""

from __future__ import annotations

import random


class Backoff:
    """Waits drawn uniformly from [0, ceiling); the ceiling doubles with each failure up to `max_s`.

    Args:
        initial_s: first ceiling, in seconds.
        max_s: last ceiling, in seconds.
        rng: source of the jitter; a seeded one repeats a run.
    """

    def __init__(self, initial_s: float, max_s: float, rng: random.Random | None = None) -> None:
        self._initial_s = initial_s
        self._max_s = max_s
        self._rng = rng or random.Random()
        self._ceiling_s = initial_s

    def next_s(self, at_least_s: float = 0.0) -> float:
        """Draw the next wait, in seconds.

        Args:
            at_least_s: the server's Retry-After; obeyed up to `max_s`.
        """
        wait_s = self._rng.uniform(0, self._ceiling_s)
        self._ceiling_s = min(self._ceiling_s * 2, self._max_s)
        return max(wait_s, min(at_least_s, self._max_s))

    def reset(self) -> None:
        """Begin again at `initial_s`, after a connection with readable frames."""
        self._ceiling_s = self._initial_s
