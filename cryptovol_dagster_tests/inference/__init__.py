"""Tests of scorers and of the latency benchmark."""
