"""Replay of recordings: streamed rows against one computation over everything."""
