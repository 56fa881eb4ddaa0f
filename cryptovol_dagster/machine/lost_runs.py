"""Runs that a killed code server left behind, and their end.

Belongs here: what a code server does around its start (``docker/code-server.sh``). Dagster's default launcher
does not notice the death of a worker: a run of a server that was killed would stay STARTED, and where one
run is allowed at a time nothing else would ever run.

    python -m cryptovol_dagster.machine.lost_runs list      before the server starts: print their ids
    python -m cryptovol_dagster.machine.lost_runs end ID…   once it serves: end them

In two steps, because the daemon tries a failed run again at once, and drops a try that finds no server.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import dagster as dg

#: Dagster's tag of runs that a code server works on; a run in process (``cryptovol backfill``) has none.
SERVED_BY = ".dagster/grpc_info"
MESSAGE = "The code server that worked on this run has ended without finishing it."
_OPEN = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """Return the ids of unfinished runs of code servers; to be called while none runs on the instance."""
    unfinished = instance.get_runs(dg.RunsFilter(statuses=_OPEN))
    return [run.run_id for run in unfinished if SERVED_BY in run.tags]


def end_runs(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> None:
    """Report lost runs as failed, or as canceled where that was requested; finished ones are unchanged."""
    for run in instance.get_runs(dg.RunsFilter(run_ids=list(run_ids), statuses=_OPEN)):
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, MESSAGE)
        else:
            instance.report_run_failed(run, MESSAGE)


def main(arguments: Sequence[str]) -> None:
    """List, or end; see the module."""
    with dg.DagsterInstance.get() as instance:
        match arguments:
            case ["list"]:
                print("\n".join(lost_runs(instance)))
            case ["end", *run_ids] if run_ids:
                end_runs(instance, run_ids)
                print(f"ended: {', '.join(run_ids)}. {MESSAGE}")
            case _:
                sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
