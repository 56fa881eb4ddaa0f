"""Tests of the dead letters in raw storage."""
