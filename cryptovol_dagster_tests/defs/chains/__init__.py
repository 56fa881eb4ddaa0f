"""Tests of `defs/chains`."""
