"""Tests that each asset check fails on poisoned rows."""
