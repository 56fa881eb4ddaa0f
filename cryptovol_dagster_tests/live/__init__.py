"""Tests of live features: clock, parts, and parity with the hourly assets."""
