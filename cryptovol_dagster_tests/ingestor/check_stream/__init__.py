"""Tests of `ingestor/check_stream`."""
