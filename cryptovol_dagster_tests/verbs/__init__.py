"""Tests of `verbs`."""
