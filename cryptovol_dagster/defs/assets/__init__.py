"""The assets: each reads, calls `core`, writes, and reports metadata."""
