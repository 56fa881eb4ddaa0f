"""Tests of `core/drift`."""
