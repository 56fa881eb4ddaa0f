"""Tests of one machine: processes, the Dagster home, lost runs, status."""
