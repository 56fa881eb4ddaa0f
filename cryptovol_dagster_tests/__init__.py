"""Tests of cryptovol; the folders mirror the rooms they test."""
