"""Tests of the lake, raw storage as the pipeline sees it, tracking and reports."""
