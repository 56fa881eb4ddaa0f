"""Tests of what is deployed: wheel, locks, images and compose.yaml."""
