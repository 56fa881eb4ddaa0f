"""Everything on one machine: the processes of `cryptovol up` and `ui`, started, watched and ended."""
