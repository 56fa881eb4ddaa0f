"""How far the features of an hour are from the reference, and from which distance on that is drift."""
