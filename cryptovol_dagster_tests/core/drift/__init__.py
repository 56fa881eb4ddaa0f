"""Tests of distances between features and of the limits learned for them."""
