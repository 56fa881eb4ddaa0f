"""Tests of the exchange's protocol."""
