"""Tests of results as PNG."""
