"""Tests of results as Markdown."""
