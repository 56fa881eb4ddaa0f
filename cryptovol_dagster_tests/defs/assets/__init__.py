"""Tests of assets, materialized in process."""
