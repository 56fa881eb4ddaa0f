"""Carry out a decision about the champion: score the rows it needs, store it, move aliases, roll back."""
