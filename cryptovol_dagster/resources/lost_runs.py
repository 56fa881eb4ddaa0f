"""Runs that a killed code server left behind, and their end.

Belongs here: what a code server does before it serves (``python -m cryptovol_dagster.resources.lost_runs``).
Dagster's default launcher cannot tell whether a worker still lives: a run of a server that was killed would
stay STARTED, and where one run is allowed at a time nothing else would ever run.
"""

from __future__ import annotations

import dagster as dg

#: Dagster's tag of runs that a code server works on; a run in process (``cryptovol backfill``) has none.
SERVED_BY = ".dagster/grpc_info"
MESSAGE = "The code server that worked on this run has ended without finishing it."
_OPEN = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def end_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """Fail the runs that a code server left unfinished; give their ids.

    To be called only while no code server runs on the instance. Where the instance retries runs whose worker
    died, its daemon starts them anew.
    """
    lost = [run for run in instance.get_runs(dg.RunsFilter(statuses=_OPEN)) if SERVED_BY in run.tags]
    for run in lost:
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, MESSAGE)
        else:
            instance.report_run_failed(run, MESSAGE)
    return [run.run_id for run in lost]


if __name__ == "__main__":
    with dg.DagsterInstance.get() as of_this_home:
        for run_id in end_lost_runs(of_this_home):
            print(f"run {run_id}: {MESSAGE}")
