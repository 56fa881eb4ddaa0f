"""Tests that run notebooks/ as a whole."""
