"""Tests of the promotion rule and its error budget."""
