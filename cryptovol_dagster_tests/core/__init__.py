"""Tests of the pure domain; modules that stand in no room of `core` are tested here."""
