"""Services are started, watched, started again and stopped in order, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cryptovol_dagster.machine import supervisor as module
from cryptovol_dagster.machine.guard import alive, remaining
from cryptovol_dagster.machine.supervisor import Service, State, Supervisor, SupervisorError

#: Says that it is up and, when told to stop, so; writes both beside the others, so that order is seen.
SLEEPER = """
import pathlib, signal, sys, time
order = pathlib.Path(sys.argv[1])
def stop(*_):
    with order.open("a") as file:
        file.write(sys.argv[2] + " ")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
time.sleep(60)
"""
#: Leaves a child of its own behind that listens to nothing but SIGKILL.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time\\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\nprint('up', flush=True)\\ntime.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def service(folder: Path, name: str, code: str, **more: object) -> Service:
    log = folder / f"{name}.log"

    def is_ready(start: int) -> bool:
        return b"up" in log.read_bytes()[start:]

    command = (sys.executable, "-c", code, str(folder / "order"), name)
    return Service(name, command, dict(os.environ), log, is_ready, **more)  # type: ignore[arg-type]


def watch_until(supervisor: Supervisor, is_done: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_done():
        assert time.monotonic() < deadline_s, supervisor.states
        supervisor.watch(0.05)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_FIRST_S", 0.05)
    monkeypatch.setattr(module, "MAX_RESTARTS", 2)


def test_services_stop_one_after_the_other_in_the_order_given(tmp_path: Path) -> None:
    services = [service(tmp_path, name, SLEEPER) for name in ("first", "second", "third")]
    told: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with Supervisor(services, told.append) as supervisor:
        watch_until(supervisor, lambda: supervisor.is_ready)
        os.kill(os.getpid(), signal.SIGTERM)
        supervisor.watch(5)
        assert supervisor.stop_asked
    assert (tmp_path / "order").read_text() == "first second third "
    assert told == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_that_needs_another_waits_for_it_but_stops_before_it(tmp_path: Path) -> None:
    slow = SLEEPER.replace('print("up"', 'time.sleep(0.5); print("up"')
    services = [
        service(tmp_path, "page", SLEEPER, needs="server"),
        service(tmp_path, "server", slow),
    ]
    with Supervisor(services, lambda _: None) as supervisor:
        supervisor.watch(0.1)
        assert supervisor.states == {"page": State.WAITING, "server": State.STARTING}
        watch_until(supervisor, lambda: supervisor.is_ready)
    assert (tmp_path / "order").read_text() == "page server "


def test_one_that_needs_another_is_started_again_after_it(tmp_path: Path) -> None:
    told: list[str] = []
    services = [service(tmp_path, "page", SLEEPER, needs="server"), service(tmp_path, "server", SLEEPER)]
    with Supervisor(services, told.append) as supervisor:
        watch_until(supervisor, lambda: supervisor.is_ready)
        page, server = supervisor._kept
        assert page.child is not None
        assert server.child is not None
        first = page.child.pid
        os.kill(server.child.pid, signal.SIGKILL)
        watch_until(supervisor, lambda: len(told) == 3)
        assert page.child is not None
        assert page.child.pid != first
    assert told[1:] == ["server is up again", "page is up again"]
    assert (tmp_path / "order").read_text() == "page page server "


def test_a_command_is_asked_for_at_each_start(tmp_path: Path) -> None:
    one = service(tmp_path, "scorer", SLEEPER)
    asked: list[int] = []

    def command() -> tuple[str, ...]:
        asked.append(len(asked))
        return (*one.command, str(asked[-1]))  # type: ignore[misc]

    with Supervisor([replace(one, command=command)], lambda _: None) as supervisor:
        watch_until(supervisor, lambda: supervisor.is_ready)
        (kept,) = supervisor._kept
        assert kept.child is not None
        os.kill(kept.child.pid, signal.SIGKILL)
        watch_until(supervisor, lambda: len(asked) == 2 and supervisor.is_ready)
        assert kept.child.args[-1] == "1"  # type: ignore[union-attr,index]


def test_one_that_follows_others_starts_after_them_and_survives_their_ends(tmp_path: Path) -> None:
    slow = SLEEPER.replace('print("up"', 'time.sleep(0.5); print("up"')
    services = [
        service(tmp_path, "simulator", SLEEPER, follows=("scorer", "featurizer")),
        service(tmp_path, "scorer", slow),
        service(tmp_path, "featurizer", "raise SystemExit('broken')", essential=False),
    ]
    with Supervisor(services, lambda _: None) as supervisor:
        supervisor.watch(0.1)
        assert supervisor.states["simulator"] is State.WAITING
        watch_until(supervisor, lambda: supervisor.is_ready)
        simulator, scorer, _ = supervisor._kept
        assert simulator.child is not None
        assert scorer.child is not None
        first, killed = simulator.child.pid, scorer.child.pid
        os.kill(killed, signal.SIGKILL)
        watch_until(supervisor, lambda: scorer.child is not None and scorer.child.pid != killed)
        assert simulator.child.pid == first


def test_one_whose_work_is_over_stops_after_those_that_need_it_and_all_have_finished(tmp_path: Path) -> None:
    told: list[str] = []
    over = tmp_path / "over"
    services = [
        service(tmp_path, "scorer", SLEEPER, needs="recorder", essential=False),
        service(tmp_path, "recorder", SLEEPER, finishes=True, is_done=lambda _: over.exists()),
        service(tmp_path, "page", SLEEPER),
    ]
    with Supervisor(services, told.append) as supervisor:
        watch_until(supervisor, lambda: supervisor.is_ready)
        supervisor.watch(0.3)
        assert told == []
        over.touch()
        watch_until(supervisor, lambda: len(told) == 2)
        supervisor.watch(0.3)
        finished = {"scorer": State.FINISHED, "recorder": State.FINISHED, "page": State.READY}
        assert supervisor.states == finished
        assert (tmp_path / "order").read_text() == "scorer recorder "
    assert told == ["scorer has finished", "recorder has finished"]


def test_one_that_needs_another_starts_when_that_is_given_up(tmp_path: Path) -> None:
    services = [
        service(tmp_path, "page", SLEEPER, needs="server"),
        service(tmp_path, "server", "raise SystemExit('broken')", essential=False),
    ]
    with Supervisor(services, lambda _: None) as supervisor:
        watch_until(supervisor, lambda: supervisor.states["page"] is State.READY)
        assert supervisor.states["server"] is State.GIVEN_UP


def test_one_that_is_killed_is_started_again_and_said_so(tmp_path: Path) -> None:
    told: list[str] = []
    one = service(tmp_path, "recorder", SLEEPER)
    with Supervisor([one], told.append) as supervisor:
        watch_until(supervisor, lambda: supervisor.is_ready)
        (kept,) = supervisor._kept
        assert kept.child is not None
        killed = kept.child.pid
        os.kill(killed, signal.SIGKILL)
        watch_until(supervisor, lambda: len(told) == 2)
        assert supervisor.states == {"recorder": State.READY}
        assert kept.child is not None
        assert kept.child.pid != killed
    assert told == [
        f"recorder ended by SIGKILL; it is started again in 0.05 s (log: {one.log})",
        "recorder is up again",
    ]


def test_one_that_keeps_dying_ends_everything_when_it_cannot_be_done_without(tmp_path: Path) -> None:
    code = (
        "import time; print('up', flush=True); time.sleep(0.5)\n"
        "raise SystemExit('\\x1b[31mno more room\\x1b[0m')"
    )
    told: list[str] = []
    services = [service(tmp_path, "recorder", code), service(tmp_path, "other", SLEEPER)]
    with (
        pytest.raises(SupervisorError, match=r"^recorder ended with exit code 1: no more room \(log: "),
        Supervisor(services, told.append) as supervisor,
    ):
        watch_until(supervisor, lambda: False)
    assert [line.partition(";")[0] for line in told if "again in" in line] == [
        "recorder ended with exit code 1: no more room"
    ] * 2
    assert (tmp_path / "order").read_text() == "other "


def test_one_that_can_be_done_without_is_given_up(tmp_path: Path) -> None:
    told: list[str] = []
    services = [
        service(tmp_path, "recorder", SLEEPER),
        service(tmp_path, "MLflow", "raise SystemExit('port taken')", essential=False),
    ]
    with Supervisor(services, told.append) as supervisor:
        watch_until(supervisor, lambda: supervisor.states["MLflow"] is State.GIVEN_UP)
        watch_until(supervisor, lambda: supervisor.states["recorder"] is State.READY)
    log = services[1].log
    assert told == [
        f"MLflow ended with exit code 1: port taken; it is given up, the others continue (log: {log})"
    ]


def test_one_that_cannot_be_prepared_is_given_up_and_the_rest_goes_on(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device", "workspace.yaml")

    told: list[str] = []
    services = [
        service(tmp_path, "recorder", SLEEPER),
        service(tmp_path, "Dagster", SLEEPER, essential=False, before=full),
    ]
    with Supervisor(services, told.append) as supervisor:
        watch_until(supervisor, lambda: supervisor.is_ready)
        assert supervisor.states == {"recorder": State.READY, "Dagster": State.GIVEN_UP}
    assert told == [
        "Dagster cannot be started: [Errno 28] No space left on device: 'workspace.yaml'; it is given up, "
        f"the others continue (log: {services[1].log})"
    ]
    with (
        pytest.raises(SupervisorError, match=r"^Dagster cannot be started: .* No space left"),
        Supervisor([service(tmp_path, "Dagster", SLEEPER, before=full)], print) as supervisor,
    ):
        watch_until(supervisor, lambda: False)


@pytest.mark.parametrize("hook", ["before", "after"])
def test_one_whose_hook_fails_when_it_is_started_again_is_tried_as_often_as_one_that_dies(
    tmp_path: Path, hook: str
) -> None:
    starts: list[int] = []

    def fails_from_the_second_on() -> None:
        starts.append(1)
        if len(starts) > 1:
            raise SupervisorError("the home cannot be asked")

    told: list[str] = []
    services = [
        service(tmp_path, "recorder", SLEEPER),
        service(tmp_path, "Dagster", SLEEPER, essential=False, **{hook: fails_from_the_second_on}),
    ]
    with Supervisor(services, told.append) as supervisor:
        watch_until(supervisor, lambda: supervisor.is_ready)
        child = supervisor._kept[1].child
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        watch_until(supervisor, lambda: supervisor.states["Dagster"] is State.GIVEN_UP)
        assert supervisor._kept[1].child is None
        assert supervisor.states["recorder"] is State.READY
    says = "cannot be started:" if hook == "before" else "started, but"
    assert [line.partition(";")[0] for line in told] == [
        "Dagster ended by SIGKILL",
        f"Dagster {says} the home cannot be asked",
        f"Dagster {says} the home cannot be asked",
    ]


def test_one_that_never_came_up_is_not_tried_again(tmp_path: Path) -> None:
    with (
        pytest.raises(SupervisorError, match="recorder ended with exit code 2: no such option"),
        Supervisor(
            [service(tmp_path, "recorder", "import sys; print('no such option'); sys.exit(2)")], print
        ) as supervisor,
    ):
        watch_until(supervisor, lambda: False)


def test_one_that_does_not_come_up_in_time_is_ended(tmp_path: Path) -> None:
    silent = service(tmp_path, "Dagster", "import time; time.sleep(60)", start_s=0.3)
    with (
        pytest.raises(SupervisorError, match=r"Dagster did not start within 0\.3 s"),
        Supervisor([silent], print) as supervisor,
    ):
        watch_until(supervisor, lambda: False)


def test_one_that_has_done_its_work_is_finished(tmp_path: Path) -> None:
    told: list[str] = []
    done = service(tmp_path, "simulator", "print('up')", finishes=True)
    with Supervisor([done], told.append) as supervisor:
        watch_until(supervisor, lambda: supervisor.states["simulator"] is State.FINISHED)
        assert supervisor.is_ready
    assert told == ["simulator has finished"]


def test_what_a_service_started_ends_with_it(tmp_path: Path) -> None:
    one = service(tmp_path, "parent", PARENT)
    with Supervisor([one], print) as supervisor:
        watch_until(supervisor, lambda: supervisor.is_ready)
        (kept,) = supervisor._kept
        assert kept.child is not None
        group = kept.child.pid
        assert alive(group)
    assert _gone(group)


#: Supervises a recorder and a stubborn family in a process of its own, so that it can be killed.
SUPERVISED = """
import sys
from pathlib import Path
from cryptovol_dagster.machine import supervisor as module
from cryptovol_dagster_tests.machine.test_supervisor import PARENT, SLEEPER, service
folder = Path(sys.argv[1])
module.GUARD_PATIENCE_S = 1.0
services = [service(folder, "recorder", SLEEPER), service(folder, "parent", PARENT)]
with module.Supervisor(services, print) as supervisor:
    while not supervisor.is_ready:
        supervisor.watch(0.05)
    print(*(kept.child.pid for kept in supervisor._kept), flush=True)
    supervisor.watch(60)
"""


def test_nothing_is_left_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    command = (sys.executable, "-c", SUPERVISED, str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        groups = [int(pid) for pid in killed.stdout.readline().split()]
        assert len(groups) == 2
        assert all(alive(group) for group in groups)
        killed.kill()
    assert all(_gone(group) for group in groups)
    assert (tmp_path / "order").read_text() == "recorder "


def test_a_guard_that_is_killed_is_replaced_by_one_that_knows_everybody(tmp_path: Path) -> None:
    with Supervisor([service(tmp_path, "recorder", SLEEPER)], print) as supervisor:
        watch_until(supervisor, lambda: supervisor.is_ready)
        first = supervisor._guard
        assert first is not None
        first.kill()
        first.wait()
        watch_until(supervisor, lambda: supervisor._guard is not first)
        assert supervisor.states == {"recorder": State.READY}
    assert (tmp_path / "order").read_text() == "recorder "


def test_the_guard_forgets_what_has_ended() -> None:
    assert remaining(["+7\n", "+8\n", "-7\n", "+9\n"]) == [8, 9]


def _gone(group: int, timeout_s: float = 10) -> bool:
    """Wait until nobody in a group is alive; a zombie that nobody reaps does not count."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        members = [
            fields
            for stat in Path("/proc").glob("[0-9]*/stat")
            if (fields := _stat(stat)) and int(fields[2]) == group and fields[0] not in "ZX"
        ]
        if not members:
            return True
        time.sleep(0.1)
    return False


def _stat(path: Path) -> list[str]:
    """Give state, parent, group, … of a process; nothing when it has just ended."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []
