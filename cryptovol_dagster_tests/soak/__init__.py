"""The long run that CI has no time for: `make soak`."""
