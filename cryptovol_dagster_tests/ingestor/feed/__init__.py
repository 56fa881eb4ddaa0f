"""Tests of the connection, and of what it publishes for each frame."""
