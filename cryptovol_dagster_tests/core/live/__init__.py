"""Tests of scores of the live path: outcomes, parity."""
