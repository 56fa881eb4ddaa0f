"""Measurements whose numbers stand in the README: `make bench`."""
