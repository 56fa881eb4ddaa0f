"""Tests of settings: files, environment, and the errors that name a key."""
