"""Numbers that say how good a ranking, a probability or an alarm is. Pure functions of arrays."""
