"""Dagster objects only: an asset is a few lines (read, call core, write, report metadata)."""
