"""Tests of the simulator: market, faults, playback, server."""
