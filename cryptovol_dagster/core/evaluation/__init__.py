"""Quality of the models: test report, walk-forward test, matured scores, and sufficiency of the data."""
