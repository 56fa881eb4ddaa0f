"""Tests of the recordings readers."""
