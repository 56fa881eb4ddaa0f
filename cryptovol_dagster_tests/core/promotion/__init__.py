"""Tests of `core/promotion`."""
