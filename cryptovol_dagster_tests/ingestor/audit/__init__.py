"""Tests of what the audit finds, and of what it must not take for a fault."""
