"""Tests of what learns and judges: labels, splits, datasets, models, metrics, evaluation, plots, card."""
