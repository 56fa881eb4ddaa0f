"""How good the models are: test report, walk-forward test, matured scores, and whether the data suffice."""
