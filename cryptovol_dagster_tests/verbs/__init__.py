"""Tests of the pipeline's command line."""
