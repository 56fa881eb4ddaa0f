"""The feature columns: declared, computed over a grid of bars, and computed live."""
