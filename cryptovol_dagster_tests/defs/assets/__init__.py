"""Tests of `defs/assets`."""
