"""Ticks, bars, windows and features against a slow, obvious reference."""
