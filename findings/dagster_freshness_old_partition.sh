#!/usr/bin/env bash
# Library:  dagster 1.13.27
# Expected: A freshness policy of an hourly asset looks at the newest hour.
# Happens:  The policy looks at the newest event: materializing an hour of 2024 turns an asset
#           without any recent hour to PASS.
# For us:   `cryptovol status` looks for the newest closed hour itself.
set -euo pipefail
VERSION=${VERSION:-1.13.27}
export DO_NOT_TRACK=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "dagster==$VERSION"

cat > hourly.py <<'PYTHON'
from datetime import timedelta

import dagster as dg


@dg.asset(
    partitions_def=dg.HourlyPartitionsDefinition("2024-01-01-00:00"),
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=1)),
)
def bars() -> None: ...
PYTHON
export DAGSTER_HOME="$work/home" FRESHNESS_DAEMON_INTERVAL_SECONDS=2
mkdir home
printf 'telemetry: {enabled: false}\nfreshness: {enabled: true}\n' > home/dagster.yaml
cat > look.py <<'PYTHON'
import sys
import time
import warnings

warnings.filterwarnings("ignore")
import dagster as dg

KEY = dg.AssetKey("bars")


def state(instance, known):
    """Return the daemon's verdict as soon as it is another than the known one, or after five minutes."""
    for _ in range(600):
        record = instance.get_freshness_state_records([KEY]).get(KEY)
        if record is not None and record.freshness_state.value != known:
            return record.freshness_state.value
        time.sleep(0.5)
    return known


with dg.DagsterInstance.get() as instance:
    before = state(instance, None)
    assert before is not None, "Dagster's daemon has evaluated nothing"
    instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition="2024-01-01-00:00"))
    after = state(instance, before)

print(f"dagster {dg.__version__}")
print("expected: no PASS: the newest hour is missing before and after an hour of 2024 is materialized")
print(f"happened: {before} before, {after} after")
if (before, after) != ("UNKNOWN", "PASS"):
    sys.exit("changed: an old hour no longer turns the asset fresh")
PYTHON
# Two processes that open a new home at once can spoil it, so it is made first.
env/bin/dagster instance migrate > /dev/null 2>&1
env/bin/dagster-daemon run -f hourly.py > daemon.log 2>&1 &
daemon=$!
trap 'kill "$daemon" 2> /dev/null || true; wait "$daemon" || true; rm -rf "$work"' EXIT
env/bin/python look.py || { status=$?; tail -n 20 daemon.log >&2; exit "$status"; }
