"""Tests of what the pipeline stores: files, caches, ledger, newest reports, raw ticks."""
