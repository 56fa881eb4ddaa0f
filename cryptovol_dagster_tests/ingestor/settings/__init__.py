"""Tests of `ingestor.settings`."""
