"""The supervisor of one machine."""
