"""Tests of what lies in notebooks/."""
