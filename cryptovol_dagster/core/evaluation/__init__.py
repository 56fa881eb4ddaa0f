"""How good the models are: the test report, walk-forward tests, matured scores, and whether the data suffice."""
