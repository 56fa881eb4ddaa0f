"""Tests of `defs/automation`."""
