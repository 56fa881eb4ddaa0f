"""Results as PNG."""
