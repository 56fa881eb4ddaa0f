"""Tests of the exchange's protocol: parsing, times, sequence."""
