"""Known leaks of future data into training, and the detectors that must find each of them."""
