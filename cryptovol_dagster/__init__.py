"""cryptovol's pipeline: pure domain code in `core`, Dagster assembly in `defs`, the rest in between."""

import os

# XGBoost's threads wait for each other by spinning, and so hold up the very thread they wait for wherever
# others use the cores too. OpenMP reads this when it is first loaded. What spinning cost:
# docs/decisions/one-machine/waiting-threads-sleep.md.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
