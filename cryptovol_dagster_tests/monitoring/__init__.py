"""Tests of drift, performance, Evidently reports, index page and alerts."""
