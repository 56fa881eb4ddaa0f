#!/usr/bin/env bash
# Library:  mlflow 3.17.2
# Expected: Two data sets with different rows have different digests.
# Happens:  The digest covers the first 10,000 rows and the number of rows, so a change further down
#           is not seen.
# For us:   A training set has a million rows. Runs carry a data hash of ours, which covers every
#           row.
set -euo pipefail
VERSION=${VERSION:-3.17.2}
export MLFLOW_DISABLE_TELEMETRY=true
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "mlflow==$VERSION" pandas==2.3.3

env/bin/python - <<'PYTHON'
import sys

import mlflow
import numpy as np
import pandas as pd

one = pd.DataFrame({"x": np.arange(20_000.0)})
other = one.assign(x=one["x"].where(one.index < 10_000, -1.0))
digests = [mlflow.data.from_pandas(frame).digest for frame in (one, other)]

print(f"mlflow {mlflow.__version__}, pandas {pd.__version__}")
print(f"expected: two digests, since {int((one['x'] != other['x']).sum()):,} of {len(one):,} rows differ")
print(f"happened: {digests[0]} and {digests[1]}")
if digests[0] != digests[1]:
    sys.exit("changed: the digests differ")
PYTHON
