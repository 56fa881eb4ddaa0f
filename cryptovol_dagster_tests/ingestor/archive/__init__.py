"""Tests of raw storage: writing, closing, recovery, reading."""
