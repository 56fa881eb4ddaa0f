"""Units that numbers are shown in."""

from __future__ import annotations

#: Basis points in one: a log return times this is in bps.
BPS = 1e4
