"""Tests of the live path's pure parts."""
