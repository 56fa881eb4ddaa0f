"""Tests of evaluations: test report, walk-forward test, matured scores, sufficiency."""
