"""The exchange's protocol: wire types, pure parsing, times, the sequence check. No sockets, no state."""
