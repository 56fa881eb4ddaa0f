"""Tests of `ingestor/verbs`."""
