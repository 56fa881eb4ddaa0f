#!/usr/bin/env bash
# Library:  evidently 0.7.23
# Expected: A drift report over current data that lack a column of the reference names the column or
#           fails.
# Happens:  A column that is missing in the current data is left out of the report, which has no
#           drift and no failed test.
# For us:   Columns are compared before Evidently is asked; a column that is missing is an error of
#           ours.
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

reference = pd.DataFrame(np.random.default_rng(0).normal(size=(2_000, 2)), columns=["spread", "imbalance"])
current = reference[["spread"]]
result = Report([DataDriftPreset()], include_tests=True).run(current, reference).dict()
named = "imbalance" in str(result)
failed = [test["name"] for test in result["tests"] if test["status"] != "SUCCESS"]

print(f"evidently {evidently.__version__}")
print("expected: the report names the missing column `imbalance`, or a test fails")
print(f"happened: it is {'named' if named else 'not named'}; {len(result['tests'])} tests, failed: {failed}")
if named or failed:
    sys.exit("changed: the missing column shows")
PYTHON
