"""From ticks or candles to the regular grid of bars."""
