"""cryptovol's pipeline: pure domain code in `core`, Dagster assembly in `defs`, the rest in between."""
