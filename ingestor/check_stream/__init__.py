"""`cryptovol check-stream`: reads the topics for a while and prints rates, gaps and latency."""
