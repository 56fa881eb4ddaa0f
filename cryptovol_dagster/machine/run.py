"""Keeps the services of this machine running and shows their status, until it is stopped."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import click

from cryptovol_dagster.core.specs import SECONDS
from cryptovol_dagster.machine.instance import hold_instance, own_config_note
from cryptovol_dagster.machine.services import Machine
from cryptovol_dagster.machine.status import Status, look
from cryptovol_dagster.machine.supervisor import Service, State, Supervisor
from ingestor.verbs.output import print_json

#: Between two status lines: on a terminal it is one line that changes, in a file each is a new one.
TERMINAL_EVERY_S, FILE_EVERY_S = 5.0, 60.0
#: Line of the recorder every few seconds (`ingestor/verbs/ingest.py`).
_PROGRESS = re.compile(rb"^(\d\d:\d\d:\d\d) INFO (\d+) frames, ", re.MULTILINE)
_PROGRESS_LINES = 7


@dataclass
class _Show:
    """Prints lines above a status line that is written over, or JSON lines."""

    as_json: bool
    _status_shown: bool = False

    def event(self, event: str, text: str, **detail: object) -> None:
        """Show that something happened."""
        if self.as_json:
            print_json({"event": event, **detail} if detail else {"event": event, "text": text})
            return
        self._clear()
        click.echo(text)

    def status(self, text: str) -> None:
        """Print the status."""
        if self.as_json:
            return
        if not sys.stdout.isatty():
            click.echo(text)
            return
        self._clear()
        click.echo(text, nl=False)
        self._status_shown = True

    def _clear(self) -> None:
        if self._status_shown:
            click.echo("\r\x1b[K", nl=False)
        self._status_shown = False


def keep_running(
    machine: Machine, services: Sequence[Service], *, as_json: bool, notes: Sequence[str] = ()
) -> None:
    """Run the services until a signal, then stop them in order.

    Args:
        machine: shared parameters of the services.
        services: in the order of start and stop.
        as_json: print events as JSON lines, the first with the addresses.
        notes: lines to print below the addresses.

    Raises:
        SupervisorError: a service that cannot be done without has ended.
        InstanceError: the instance is in use, or cannot be used.
    """
    machine.logs.mkdir(parents=True, exist_ok=True)
    show = _Show(as_json)
    names = [service.name for service in services]
    with hold_instance(machine.home, machine.dagster_url, machine.mlflow_url, names):
        show.event("started", _addresses(machine, services, notes), **_details(machine, services))
        own = own_config_note(machine.home)
        if own is not None:
            show.event("notice", own)
        with (
            _temporary(services) as confined,
            Supervisor(confined, lambda line: show.event("notice", line)) as supervisor,
        ):
            began_s = time.monotonic()
            while not (supervisor.is_ready or supervisor.stop_asked):
                supervisor.watch(0.5)
            if not supervisor.stop_asked:
                took_s = time.monotonic() - began_s
                if supervisor.states.get("MLflow") is State.READY:
                    show.event("notice", f"models in MLflow: {machine.mlflow_runs()}")
                show.event("ready", f"ready after {took_s:.0f} s; Ctrl-C stops everything")
            every_s = TERMINAL_EVERY_S if sys.stdout.isatty() else FILE_EVERY_S
            while not supervisor.stop_asked:
                supervisor.watch(every_s)
                if not as_json and not supervisor.stop_asked:
                    show.status(_line(machine, supervisor))
            show.event("stopping", "stopping: " + ", then ".join(names))
        show.event("stopped", "stopped")


@contextmanager
def _temporary(services: Sequence[Service]) -> Iterator[list[Service]]:
    """Create a temporary folder for the services, which is removed when they have ended.

    MLflow's server leaves a file in it each time, and a Dagster that had to be killed its sockets. Not in the
    data folder: the path of a socket has 107 characters at most.
    """
    with tempfile.TemporaryDirectory(prefix="cryptovol-", ignore_cleanup_errors=True) as folder:
        yield [
            replace(service, environment={**service.environment, "TMPDIR": folder}) for service in services
        ]


def _details(machine: Machine, services: Sequence[Service]) -> dict[str, object]:
    return {
        "dagster_url": machine.dagster_url,
        "mlflow_url": machine.mlflow_url,
        "data_dir": str(machine.settings.storage.data_dir),
        "reports_dir": str(machine.settings.storage.reports_dir),
        "logs": {service.name: str(service.log) for service in services},
    }


def _addresses(machine: Machine, services: Sequence[Service], notes: Sequence[str]) -> str:
    names = {service.name for service in services}
    lines = {
        "Dagster": machine.dagster_url,
        "MLflow": machine.mlflow_url,
    }
    shown = [f"{name:<9}{url}" for name, url in lines.items() if name in names]
    storage = machine.settings.storage
    shown += [f"{'data':<9}{storage.data_dir}", f"{'reports':<9}{storage.reports_dir}"]
    shown.append(f"{'logs':<9}{machine.logs}")
    return "\n".join([*shown, *notes, "starting; Dagster takes some 20 s"])


def _line(machine: Machine, supervisor: Supervisor) -> str:
    """Return the status in one line."""
    parts = [f"{datetime.now().astimezone():%H:%M:%S}"]
    if "recorder" in supervisor.states:
        rate = frames_per_s(machine.logs / "recorder.log")
        parts.append("no frames yet" if rate is None else f"{rate:,.1f} frames/s")
    status = look(machine.settings, time.time_ns())
    if "scorer" in supervisor.states:
        parts.append("no scores stored yet" if status.live is None else f"scores: {status.live}")
    parts += _stand(status)
    parts += [
        f"{name} {state.value}"
        for name, state in supervisor.states.items()
        if state not in (State.READY, State.FINISHED)
    ]
    return " · ".join(parts)


def _stand(status: Status) -> list[str]:
    parts = [f"closed {status.raw.newest_closed or 'none'}", f"labels {status.newest_labels or 'none'}"]
    if status.minutes and any(one.learning for one in status.models if one.timescale != SECONDS):
        parts.append(status.minutes)
    for models in status.models:
        if models.evaluated is not None:
            champion = f", champion {models.champion}" if models.champion else ""
            parts.append(f"{models.timescale} retrained {models.evaluated} ({models.verdict}{champion})")
    if status.waits_for is not None:
        parts.append(f"waits for {status.waits_for}")
    return parts


def frames_per_s(log: Path) -> float | None:
    """Return the recorder's rate over its last half minute, from its log; None before there is one."""
    if not log.exists():
        return None
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 8_192))
        found = _PROGRESS.findall(file.read())[-_PROGRESS_LINES:]
    if len(found) < 2:
        return None
    (first_at, first), (last_at, last) = found[0], found[-1]
    seconds = (_second_of_day(last_at) - _second_of_day(first_at)) % 86_400
    frames = int(last) - int(first)
    # A recorder that was started again counts from nothing.
    return frames / seconds if seconds and frames >= 0 else None


def _second_of_day(text: bytes) -> int:
    hours, minutes, seconds = text.split(b":")
    return int(hours) * 3_600 + int(minutes) * 60 + int(seconds)


def port_option(title: str, default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option for the port of a user interface."""
    return click.option(
        f"--{title.lower()}-port",
        default=default,
        show_default=True,
        type=click.IntRange(0, 65_535),
        help=f"Port of the {title} UI, on loopback; 0: a free one, printed.",
    )
