"""`cryptovol score`: probabilities of every second, as the rows of ticks.features arrive."""
