"""Tests of `core/leaks`."""
