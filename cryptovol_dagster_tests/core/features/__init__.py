"""Tests of features, computed over a grid and live, against a slow reference."""
