"""Tests of the numbers that the notebook shows."""
