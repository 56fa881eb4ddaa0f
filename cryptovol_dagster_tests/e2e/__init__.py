"""Tests that start real processes: the recorder, Dagster's and ours, and a browser."""
