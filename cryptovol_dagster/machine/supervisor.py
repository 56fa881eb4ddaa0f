"""Keeps a few services running on this machine: starts, watches, restarts and ends them.

Belongs here: processes, their ends and their order. Does not belong here: what the services are
(`services.py`) and how it is shown (`verbs/up.py`).

Each service is the leader of a process group of its own, so a Ctrl-C in the terminal reaches the supervisor
alone, and a service ends with everything it started. `guard.py` ends them if the supervisor is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import click

from cryptovol_dagster.machine import guard
from ingestor.errors import CryptovolError

#: A service that ran this long had started properly: its next end counts as the first one again.
HEALTHY_AFTER_S = 60.0
MAX_RESTARTS = 8
BACKOFF_FIRST_S, BACKOFF_LONGEST_S = 1.0, 30.0
#: Time for the services to stop when the supervisor was killed. A recorder drains in less.
GUARD_PATIENCE_S = 120.0
_LOOK_EVERY_S = 0.2
#: Further time for the remaining processes of an ended service.
_SWEEP_S = 1.0


class SupervisorError(CryptovolError):
    """A service that cannot be done without has ended; the message is one line."""


class State(Enum):
    """State of a service."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"  # for its next start
    FINISHED = "finished"
    GIVEN_UP = "given up"


#: Services that need a service in one of these states wait.
_NOT_YET = (State.STARTING, State.WAITING)
_SETTLED = (State.READY, State.FINISHED, State.GIVEN_UP)


@dataclass(frozen=True)
class Service:
    """A program to keep running.

    Attributes:
        name: as people read it.
        command: program and arguments; called before each start where they depend on another service.
        environment: the whole environment of the process.
        log: file that gets its stdout and stderr, appended.
        is_ready: called until it returns True, with the position in the log at which this start began
            (bytes).
        essential: whether all services end when this one cannot be kept running.
        finishes: whether exit code 0 is the end of its work, not a failure.
        is_done: called while it is ready, as `is_ready`; once it returns True, its work is over: the services
            that need this one are stopped, then this one, and all have finished.
        hopeless: exit codes after which another start would fail again.
        start_s: longest time of a start.
        stop_s: how long a stop may take before it is killed.
        before: called before every start; an error of it (`CryptovolError`, `OSError`) counts as an end.
        after: called every time it has become ready; an error of it counts as an end, too.
        needs: name of a service that starts before this one, or is given up; where it ends, this one is
            stopped, and started again after it; where it has finished, so has this one.
        follows: names of services that start before this one, or are given up; their ends are no matter.
    """

    name: str
    command: Sequence[str] | Callable[[], Sequence[str]]
    environment: Mapping[str, str]
    log: Path
    is_ready: Callable[[int], bool]
    essential: bool = True
    finishes: bool = False
    is_done: Callable[[int], bool] | None = None
    hopeless: frozenset[int] = frozenset({2})
    start_s: float = 600.0  # on a busy machine Dagster was seen to take two minutes
    stop_s: float = 20.0
    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None
    needs: str | None = None
    follows: Sequence[str] = ()


@dataclass
class _Kept:
    """A service and how it fares."""

    service: Service
    state: State = State.WAITING
    child: subprocess.Popen[bytes] | None = None
    log_start: int = 0
    started_s: float = 0.0
    due_s: float = 0.0
    restarts: int = 0
    was_ready: bool = False


@dataclass
class Supervisor:
    """Services, in the order in which they are started and stopped.

    Args:
        services: the services to keep running.
        tell: called with each message for the operator, one line.
        clock: seconds, never backwards.
    """

    services: Sequence[Service]
    tell: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _kept: list[_Kept] = field(default_factory=list)
    _guard: subprocess.Popen[str] | None = None
    _signals: int = 0
    _handlers: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._kept = [_Kept(service) for service in self.services]
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._handlers[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    @property
    def states(self) -> dict[str, State]:
        """The state of each service, by name."""
        return {kept.service.name: kept.state for kept in self._kept}

    @property
    def is_ready(self) -> bool:
        """Whether every service is up, has finished, or is given up."""
        return all(kept.state in _SETTLED for kept in self._kept)

    @property
    def stop_asked(self) -> bool:
        """Whether a signal has requested the end."""
        return self._signals > 0

    def watch(self, seconds: float) -> None:
        """Start due services and watch all of them for so long, or until a signal requests the end.

        Raises:
            SupervisorError: an essential service cannot be kept running.
        """
        until_s = self.clock() + seconds
        while not self.stop_asked:
            self._look()
            if self.clock() >= until_s:
                return
            time.sleep(_LOOK_EVERY_S)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _look(self) -> None:
        self._keep_guard()
        for kept in self._kept:
            if kept.state is State.WAITING and self.clock() >= kept.due_s:
                awaited = (kept.service.needs or "", *kept.service.follows)
                if not any(self.states.get(name) in _NOT_YET for name in awaited):
                    self._start(kept)
            elif kept.child is not None:
                code = kept.child.poll()
                if code is not None:
                    self._ended(kept, code, f"ended {_how(code)}")
                elif kept.state is State.STARTING:
                    self._await(kept)
                elif kept.service.is_done is not None and kept.service.is_done(kept.log_start):
                    self._finish(kept)
            if self.stop_asked:
                return

    def _start(self, kept: _Kept) -> None:
        service = kept.service
        kept.started_s = self.clock()  # also where it fails, or that would count as a long life
        try:
            if service.before is not None:
                service.before()
            command = service.command() if callable(service.command) else service.command
            with service.log.open("ab") as output:
                kept.log_start = output.tell()
                kept.child = subprocess.Popen(
                    command,
                    env=dict(service.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except (CryptovolError, OSError) as error:
            self._again_or_never(kept, f"{service.name} cannot be started: {error}")
            return
        self._tell_guard(f"+{kept.child.pid}")
        kept.state, kept.started_s = State.STARTING, self.clock()

    def _await(self, kept: _Kept) -> None:
        if kept.service.is_ready(kept.log_start):
            self._ready(kept)
        elif self.clock() - kept.started_s > kept.service.start_s:
            self._ended(kept, None, f"did not start within {kept.service.start_s:g} s")

    def _ready(self, kept: _Kept) -> None:
        kept.state = State.READY
        if kept.service.after is not None:
            try:
                kept.service.after()
            except (CryptovolError, OSError) as error:
                self._end_with_dependents(kept)
                self._again_or_never(kept, f"{kept.service.name} started, but {error}")
                return
        if kept.was_ready:
            self.tell(f"{kept.service.name} is up again")
        kept.was_ready = True

    def _ended(self, kept: _Kept, code: int | None, what: str) -> None:
        service = kept.service
        if code == 0 and service.finishes:
            self._finish(kept)
            return
        self._end_with_dependents(kept)
        # A killed service has no last log line.
        words = "" if code is not None and code < 0 else _last_words(service.log, kept.log_start)
        self._again_or_never(kept, f"{service.name} {what}{words}", hopeless=code in service.hopeless)

    def _finish(self, kept: _Kept) -> None:
        """Stop a service whose work is over, after those that need it."""
        dependents = [other for other in self._kept if other.service.needs == kept.service.name]
        for each in (*dependents, kept):
            if each.state is State.GIVEN_UP:
                continue
            self._stop_one(each, patient_signals=1)
            each.state = State.FINISHED
            self.tell(f"{each.service.name} has finished")

    def _end_with_dependents(self, kept: _Kept) -> None:
        # Those that need it go first: Dagster's daemon never retries a run that fails beside no code server.
        for other in self._kept:
            if other.service.needs == kept.service.name and other.child is not None:
                self._sweep(other)
                other.state, other.due_s = State.WAITING, self.clock()
        self._sweep(kept)

    def _again_or_never(self, kept: _Kept, line: str, *, hopeless: bool = False) -> None:
        """Start a service again after a pause, or give it up, and report that.

        Raises:
            SupervisorError: it is given up and essential.
        """
        service = kept.service
        if self.clock() - kept.started_s >= HEALTHY_AFTER_S:
            kept.restarts = 0
        # A service that never started is configured wrongly; one that did may be started again.
        if not (hopeless or not kept.was_ready or kept.restarts >= MAX_RESTARTS):
            pause_s = min(BACKOFF_FIRST_S * 2**kept.restarts, BACKOFF_LONGEST_S)
            kept.restarts += 1
            kept.state, kept.due_s = State.WAITING, self.clock() + pause_s
            self.tell(f"{line}; it is started again in {pause_s:g} s (log: {service.log})")
            return
        kept.state = State.GIVEN_UP
        if service.essential:
            raise SupervisorError(f"{line} (log: {service.log})")
        self.tell(f"{line}; it is given up, the others continue (log: {service.log})")

    def _stop(self) -> None:
        """Stop the services one after the other; a further signal ends the waiting."""
        patient_signals = max(self._signals, 1)
        for kept in self._kept:
            self._stop_one(kept, patient_signals)
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait()

    def _stop_one(self, kept: _Kept, patient_signals: int) -> None:
        if kept.child is None:
            return
        guard.tell(kept.child.pid, signal.SIGTERM)
        until_s = time.monotonic() + kept.service.stop_s
        while kept.child.poll() is None and time.monotonic() < until_s:
            if self._signals > patient_signals:
                break
            time.sleep(_LOOK_EVERY_S / 4)
        self._sweep(kept)

    def _sweep(self, kept: _Kept) -> None:
        """End the remaining processes of a service, itself included, and drop it."""
        child, kept.child = kept.child, None
        if child is None:
            return
        guard.tell(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_SWEEP_S)
        # Children that the leader did not stop.
        guard.end([child.pid], _SWEEP_S)
        child.wait()
        self._tell_guard(f"-{child.pid}")

    def _keep_guard(self) -> None:
        """Start a guard that knows every child; a killed one is replaced."""
        if self._guard is not None and self._guard.poll() is None:
            return
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(GUARD_PATIENCE_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        for kept in self._kept:
            if kept.child is not None:
                self._tell_guard(f"+{kept.child.pid}")

    def _tell_guard(self, line: str) -> None:
        if self._guard is None or self._guard.stdin is None:
            return
        try:
            print(line, file=self._guard.stdin, flush=True)
        except BrokenPipeError:
            # The guard was killed: the next pass replaces it and passes it every child.
            return


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _last_words(log: Path, start: int) -> str:
    """Return the last log line of a service since its start, in a form to append."""
    with log.open("rb") as file:
        file.seek(max(start, os.fstat(file.fileno()).st_size - 4_096))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return f": {click.unstyle(lines[-1])[:300]}" if lines else ""
