#!/usr/bin/env bash
# Library:  dagster-mlflow 0.29.27 with dagster 1.13.27 and mlflow 3.17.2
# Expected: When the Dagster run fails, MLflow's run that the resource opened ends as FAILED.
# Happens:  MLflow's run ends as FINISHED.
# For us:   Our tracking resource asks Dagster's event log for the outcome when the run ends.
set -euo pipefail
VERSION=${VERSION:-0.29.27}
export DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true GIT_PYTHON_REFRESH=quiet
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python \
    "dagster-mlflow==$VERSION" dagster==1.13.27 mlflow==3.17.2 pandas==2.3.3

cat > failing.py <<'PYTHON'
import logging
import warnings

warnings.filterwarnings("ignore")
import dagster as dg
from dagster_mlflow import mlflow_tracking

logging.disable(logging.CRITICAL)


@dg.op(required_resource_keys={"mlflow"})
def train(context):
    context.resources.mlflow.log_param("depth", 4)
    raise ValueError("no rows")


@dg.job(resource_defs={"mlflow": mlflow_tracking})
def fails():
    train()


config = {"experiment_name": "runs", "mlflow_tracking_uri": "sqlite:///mlflow.db"}
result = fails.execute_in_process({"resources": {"mlflow": {"config": config}}}, raise_on_error=False)
assert not result.success
PYTHON
env/bin/python failing.py
env/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import mlflow

mlflow.set_tracking_uri("sqlite:///mlflow.db")
(run,) = mlflow.search_runs(experiment_names=["runs"], output_format="list")

print(", ".join(f"{name} {version(name)}" for name in ("dagster-mlflow", "dagster", "mlflow")))
print("expected: the Dagster run failed, so MLflow's run is FAILED")
print(f"happened: MLflow's run is {run.info.status}")
if run.info.status != "FINISHED":
    sys.exit("changed: MLflow's run no longer looks finished")
PYTHON
