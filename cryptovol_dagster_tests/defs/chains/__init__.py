"""Tests of whole chains, materialized in process: seconds and minutes."""
