#!/usr/bin/env bash
# Library:  evidently 0.7.23
# Expected: The normed Wasserstein distance has no unit: the same change in other units has the same
#           distance.
# Happens:  The distance is divided by at least 0.001, so one-second returns (about 0.00001) can
#           grow fivefold without drift.
# For us:   Evidently is given our own distance, which has no such bound.
set -euo pipefail
VERSION=${VERSION:-0.7.23}
export DO_NOT_TRACK=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "evidently==$VERSION" pandas==2.3.3

env/bin/python - <<'PYTHON'
import sys
import warnings

warnings.filterwarnings("ignore")
import evidently
import numpy as np
import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset

rng = np.random.default_rng(0)
calm, wild = rng.normal(size=5_000), 5 * rng.normal(size=5_000)
units = {"as_fraction": 1e-5, "in_basis_points": 0.1}
reference = pd.DataFrame({name: calm * scale for name, scale in units.items()})
current = pd.DataFrame({name: wild * scale for name, scale in units.items()})
metrics = Report([DataDriftPreset()]).run(current, reference).dict()["metrics"]
distance = {
    name: float(m["value"]) for name in units for m in metrics if f"column={name}," in m["metric_name"]
}

print(f"evidently {evidently.__version__}, default drift method of 5,000 rows, limit 0.1")
print("expected: returns that become five times as volatile have one distance in any unit")
print("happened: " + ", ".join(f"{value:.3f} {name}" for name, value in distance.items()))
if not distance["as_fraction"] < 0.1 < distance["in_basis_points"]:
    sys.exit("changed: the distance no longer depends on the unit")
PYTHON
