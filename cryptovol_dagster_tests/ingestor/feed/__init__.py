"""Tests of the connection and what it makes of frames."""
