"""Tests of the publisher and of check-stream."""
