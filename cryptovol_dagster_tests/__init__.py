"""Tests of cryptovol: a folder for each room, and the ladder of README.md beside them."""
