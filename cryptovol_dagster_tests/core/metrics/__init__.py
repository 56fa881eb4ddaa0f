"""Tests of metrics against scikit-learn and exact small cases."""
