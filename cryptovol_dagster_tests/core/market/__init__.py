"""Tests of ticks, cleaning, candles and bars."""
