"""Tests that every known leak is found, and nothing else."""
