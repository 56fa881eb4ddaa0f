"""Minute candles: what was imported (external), and the table that joins it with the feed's own trades."""

# No `from __future__ import annotations` here: Dagster reads annotations.

HISTORY = "minutes/history"
