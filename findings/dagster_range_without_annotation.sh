#!/usr/bin/env bash
# Library:  dagster 1.13.27
# Expected: An asset that returns nothing stores nothing, so a run over a range of its partitions
#           succeeds.
# Happens:  Without `-> None` the range run fails in the I/O manager, after the asset's body has
#           run; a run of one partition succeeds.
# For us:   Every asset is annotated with what it returns, and a test asserts it.
set -euo pipefail
VERSION=${VERSION:-1.13.27}
export DO_NOT_TRACK=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "dagster==$VERSION"

env/bin/python - <<'PYTHON'
import logging
import sys
import warnings

import dagster as dg

logging.disable(logging.CRITICAL)
warnings.filterwarnings("ignore")
hours = dg.HourlyPartitionsDefinition("2026-11-30-00:00")


@dg.asset(partitions_def=hours, backfill_policy=dg.BackfillPolicy.single_run())
def plain():
    pass


@dg.asset(partitions_def=hours, backfill_policy=dg.BackfillPolicy.single_run())
def annotated() -> None:
    pass


bounds = {
    "dagster/asset_partition_range_start": "2026-11-30-00:00",
    "dagster/asset_partition_range_end": "2026-11-30-02:00",
}
outcome, reason = {}, ""
for asset in (plain, annotated):
    with dg.DagsterInstance.ephemeral() as instance:
        one = dg.materialize(
            [asset], partition_key="2026-11-30-00:00", instance=instance, raise_on_error=False
        )
        several = dg.materialize([asset], tags=bounds, instance=instance, raise_on_error=False)
        outcome[asset.key.to_user_string()] = (one.success, several.success)
        for event in several.get_step_failure_events():
            reason = str(event.event_specific_data.error.cause or event.event_specific_data.error)

print(f"dagster {dg.__version__}")
print("expected: runs of one hour and of three hours succeed, with `-> None` and without")
print(f"happened: (one hour, three hours) succeeded: {outcome}")
if outcome != {"plain": (True, False), "annotated": (True, True)} or "multiple partitions" not in reason:
    sys.exit("changed: the annotation no longer decides whether a range run succeeds")
PYTHON
