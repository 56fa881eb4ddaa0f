"""Tests of brokers, log identity, publishing and the spill."""
