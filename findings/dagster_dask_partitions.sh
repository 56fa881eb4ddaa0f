#!/usr/bin/env bash
# Library:  dagster-dask 0.29.27 with dask 2026.8.0
# Expected: The Dask executor runs a job over partitioned assets as the other executors do.
# Happens:  Every run of a partitioned job fails at once; a job without partitions succeeds.
# For us:   Our jobs use the in-process executor. Dask could serve inside an asset, not as Dagster's
#           executor.
set -euo pipefail
VERSION=${VERSION:-0.29.27}
export DO_NOT_TRACK=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python \
    "dagster-dask==$VERSION" dagster==1.13.27 "dask[dataframe,distributed]==2026.8.0" pandas==2.3.3

cat > jobs.py <<'PYTHON'
import dagster as dg
from dagster_dask import dask_executor

hours = dg.HourlyPartitionsDefinition("2026-11-30-00:00")


@dg.asset(partitions_def=hours)
def hourly() -> None: ...


@dg.asset
def whole() -> None: ...


cluster = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
local = dask_executor.configured({"cluster": {"local": cluster}})
defs = dg.Definitions(
    [hourly, whole],
    jobs=[
        dg.define_asset_job("by_hour", [hourly], executor_def=local),
        dg.define_asset_job("at_once", [whole], executor_def=local),
    ],
)


def by_hour():
    return defs.resolve_job_def("by_hour")


def at_once():
    return defs.resolve_job_def("at_once")
PYTHON
cat > run.py <<'PYTHON'
import logging
import sys
import warnings
from importlib.metadata import version

warnings.filterwarnings("ignore")
import dagster as dg
import jobs

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    ended = {}
    with dg.instance_for_test() as instance:
        for name, tags in (("at_once", {}), ("by_hour", {"dagster/partition": "2026-11-30-00:00"})):
            job = dg.reconstructable(getattr(jobs, name))
            try:
                ended[name] = str(dg.execute_job(job, instance, tags=tags, raise_on_error=True).success)
            except Exception as error:
                ended[name] = f"{type(error).__name__}: {error}"
    print(", ".join(f"{name} {version(name)}" for name in ("dagster-dask", "dagster", "dask")))
    print("expected: True without partitions, True with partitions")
    print(f"happened: {ended['at_once']} without partitions, with partitions {ended['by_hour']}")
    if ended["at_once"] != "True" or "Iteration is not allowed" not in ended["by_hour"]:
        sys.exit("changed: partitioned jobs run, or fail in another way")
PYTHON
# Dask's workers log to the terminal.
PYTHONPATH=. env/bin/python run.py 2> log || { status=$?; cat log >&2; exit "$status"; }
