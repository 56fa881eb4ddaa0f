"""Dead letters in raw storage: found, grouped, read again, written out."""
