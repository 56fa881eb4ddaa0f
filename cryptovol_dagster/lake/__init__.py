"""Everything the pipeline stores, read and written with its type."""
