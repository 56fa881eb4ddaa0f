"""Tests of imported candles: REST interface, import, store, days."""
