"""Tests of the recorder; modules that stand in no room of `ingestor` are tested here."""
