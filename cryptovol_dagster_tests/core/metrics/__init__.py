"""Tests of `core/metrics`."""
