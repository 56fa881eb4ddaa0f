"""Tests of labels, splits and training rows."""
