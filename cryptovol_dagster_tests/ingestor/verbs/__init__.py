"""Tests of the recorder's command line."""
