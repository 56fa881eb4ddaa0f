"""Tests of the recorder's verbs."""
