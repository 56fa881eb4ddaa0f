"""Tests that start real processes: Dagster's command line, daemon and webserver, and a browser."""
