"""Tests of `core/features`."""
