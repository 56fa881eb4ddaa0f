"""Tests that break things on purpose: kills, outages, full disks, bad frames."""
