"""Tests of `ingestor/kafka`."""
