"""Tests of `core/exploration`."""
