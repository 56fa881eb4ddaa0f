"""Tests of the Dagster assembly."""
