"""Distance of the features of an hour from the reference, and the limits from which it is drift."""
