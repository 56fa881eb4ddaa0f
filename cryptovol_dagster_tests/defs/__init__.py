"""Tests of the Dagster assembly: graph, pools, retries, bad input, traps."""
