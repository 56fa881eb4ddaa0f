#!/bin/sh
# The code location, and the worker of the runs that are launched here. At a stop it takes no new run and lets the
# running one end (stop_grace_period). What a kill left behind is ended, or it would hold the queue for ever.
set -eu
lost=$(python -m cryptovol_dagster.machine.lost_runs list)
if [ -n "$lost" ]; then
    # Ended once this server is known: the daemon, which looks every few seconds, drops a retry that finds none.
    (
        until python /app/health.py grpc 4000 2>/dev/null; do sleep 1; done
        sleep 15
        # shellcheck disable=SC2086 - one word an id
        python -m cryptovol_dagster.machine.lost_runs end $lost
    ) &
fi
exec dagster api grpc --host 0.0.0.0 --port 4000 --module-name cryptovol_dagster.definitions \
    --location-name cryptovol_dagster.definitions
