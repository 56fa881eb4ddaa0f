"""cryptovol's pipeline: pure domain code in `core`, Dagster assembly in `defs`, the rest in between."""

import os

# XGBoost's threads wait for each other by spinning, and so hold up the very thread they wait for wherever
# others use the cores too. OpenMP reads this when it is first loaded. What spinning cost:
# docs/decisions/one-machine/waiting-threads-sleep.md.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# No library phones home. ONNX Runtime does so on Linux since 1.29, and leaves a file in the temporary folder;
# it reads this when it is first imported, and asking it to stop afterwards is too late.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
