"""Tests of `history`."""
