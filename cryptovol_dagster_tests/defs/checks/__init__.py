"""Tests of `defs/checks`."""
