"""Metrics of rankings and probabilities, with uncertainty: functions of arrays, independent of any model."""
