"""Runs of a killed code server are ended; those of other processes are left alone."""

from __future__ import annotations

import dagster as dg
from dagster._core.storage.tags import GRPC_INFO_TAG

from cryptovol_dagster.machine.lost_runs import MESSAGE, SERVED_BY, end_runs, lost_runs

Status = dg.DagsterRunStatus


def test_only_unfinished_runs_of_a_code_server_are_ended() -> None:
    @dg.job
    def nothing() -> None: ...

    served = {SERVED_BY: '{"host": "code", "port": 4000}'}
    with dg.DagsterInstance.ephemeral() as instance:

        def run(status: Status, tags: dict[str, str]) -> str:
            return instance.create_run_for_job(nothing, status=status, tags=tags).run_id

        lost = [run(Status.STARTED, served), run(Status.STARTING, served)]
        canceling = run(Status.CANCELING, served)
        others = {
            run(Status.STARTED, {}): Status.STARTED,
            run(Status.NOT_STARTED, {}): Status.NOT_STARTED,
            run(Status.SUCCESS, served): Status.SUCCESS,
        }
        found = lost_runs(instance)
        assert sorted(found) == sorted([*lost, canceling])
        later = run(Status.STARTED, served)  # launched by the server that has just started
        end_runs(instance, found)
        others[later] = Status.STARTED
        after = {each.run_id: each.status for each in instance.get_runs()}
        told = [record.message for record in instance.all_logs(lost[0])]
    assert after == {**dict.fromkeys(lost, Status.FAILURE), canceling: Status.CANCELED, **others}
    assert any(MESSAGE in message for message in told)


def test_the_tag_is_the_one_that_dagster_sets() -> None:
    assert SERVED_BY == GRPC_INFO_TAG
