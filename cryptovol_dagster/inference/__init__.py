"""Features in, probabilities out, and how long that takes."""
