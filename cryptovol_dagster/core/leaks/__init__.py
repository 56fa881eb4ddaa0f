"""Known leaks of the future into the past, and the detectors that must find each of them."""
