"""Tests of `ingestor/archive`."""
