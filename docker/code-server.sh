#!/bin/sh
# The code location, and the worker of the runs that are launched here. At a stop it takes no new run and lets the
# running one end (stop_grace_period). What a kill left behind is ended first, or it would hold the queue for ever.
set -eu
python -m cryptovol_dagster.resources.lost_runs
exec dagster api grpc --host 0.0.0.0 --port 4000 --module-name cryptovol_dagster.definitions \
    --location-name cryptovol_dagster.definitions
