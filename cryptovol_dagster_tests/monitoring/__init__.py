"""Tests of drift, performance, Evidently reports, and index page."""
