"""Tests of the live table: reading, statistics, printing."""
