#!/usr/bin/env bash
# Library:  evidently 0.7.23
# Expected: Two halves of one stationary series do not drift: nothing about the process changes.
# Happens:  The default verdict calls drift in most series whose values depend on the ones before,
#           as volatility does; shuffled, none drifts.
# For us:   Distances get limits calibrated on past pairs of windows, and Evidently's page says
#           whether its limits are calibrated.
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

SERIES, HALF, MEMORY = 20, 20_000, 0.998
rng = np.random.default_rng(0)
state = rng.normal(size=SERIES) / np.sqrt(1 - MEMORY**2)  # the stationary distribution: no start to forget
rows = []
for shock in rng.normal(size=(2 * HALF, SERIES)):
    state = MEMORY * state + shock
    rows.append(state)
in_time = pd.DataFrame(rows, columns=[f"series_{i}" for i in range(SERIES)])


def drifted(frame):
    result = Report([DataDriftPreset()]).run(frame[HALF:], frame[:HALF]).dict()
    return int(result["metrics"][0]["value"]["count"])


ordered, shuffled = drifted(in_time), drifted(in_time.sample(frac=1, random_state=0))
print(f"evidently {evidently.__version__}")
print(
    f"expected: few of {SERIES} stationary autoregressive series (coefficient {MEMORY}) drift between their halves"
)
print(f"happened: {ordered} of {SERIES} drift; with the same values in random order {shuffled}")
if ordered < SERIES / 2 or shuffled > 1:
    sys.exit("changed: serial dependence is no longer called drift")
PYTHON
