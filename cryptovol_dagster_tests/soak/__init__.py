"""Long runs that CI has no time for: `make soak`."""
