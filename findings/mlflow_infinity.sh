#!/usr/bin/env bash
# Library:  mlflow 3.17.2 with a SQL store
# Expected: A metric logged as infinity reads back as infinity, or is refused.
# Happens:  Infinity reads back as 1.797e308, which is finite: a check for non-finite metrics
#           passes.
# For us:   Non-finite metrics are left out before they are logged.
set -euo pipefail
VERSION=${VERSION:-3.17.2}
export MLFLOW_DISABLE_TELEMETRY=true
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "mlflow==$VERSION"

env/bin/python - <<'PYTHON'
import logging
import math
import sys

import mlflow

logging.disable(logging.INFO)
mlflow.set_tracking_uri("sqlite:///mlflow.db")
with mlflow.start_run() as run:
    mlflow.log_metric("log_loss", math.inf)
read = mlflow.get_run(run.info.run_id).data.metrics["log_loss"]

print(f"mlflow {mlflow.__version__}")
print("expected: inf is logged, inf is read")
print(f"happened: inf is logged, {read!r} is read, and isfinite says {math.isfinite(read)}")
if not math.isfinite(read):
    sys.exit("changed: infinity is kept")
PYTHON
