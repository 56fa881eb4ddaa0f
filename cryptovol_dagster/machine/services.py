"""The services of one machine, each as a command and a sign of life."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from cryptovol_dagster.lake.atomic import replace_file
from cryptovol_dagster.machine.instance import InstanceError, opening
from cryptovol_dagster.machine.owners import experiment
from cryptovol_dagster.machine.reachable import accepts, answers, free_port, why_taken
from cryptovol_dagster.machine.supervisor import Service
from cryptovol_dagster.tracking.links import mlflow_page
from cryptovol_dagster.tracking.store import is_prepared, local_store
from ingestor.errors import USAGE, CryptovolError
from ingestor.settings import Settings

HOST = "127.0.0.1"
#: The location name of ``-m`` and ``workspace.yaml``: the daemon finds a backfill launched from anywhere.
LOCATION = "cryptovol_dagster.definitions"
_CRYPTOVOL = (sys.executable, "-m", "cryptovol_dagster.cli")
_MLFLOW_STORE = (sys.executable, "-m", "cryptovol_dagster.tracking.store")
_LOST_RUNS = (sys.executable, "-m", "cryptovol_dagster.machine.lost_runs")
#: The first line of recorder, featurizer and scorer.
_STARTED = '"event": "started"'
#: A recorder waits for acknowledgements, then for the archive to flush: 30 s, flush_s and 30 s.
RECORDER_STOP_S = 150.0
#: Featurizer and scorer wait 30 s for acknowledgements, then the scorer's archive 30 s for the scores.
LIVE_STOP_S = 75.0
LIVE = ("scorer", "featurizer")
#: A simulator starts after featurizer and scorer; a service may take 600 s to start.
SIMULATOR_WITHIN_S = 1_200.0
#: Count in a progress line of featurizer or scorer.
_PROGRESS = re.compile(rb" INFO (\d+) (?:rows|bars), ")
#: A simulated market is read when the counts grew no faster than in silence over so many lines, which are so
#: many seconds apart: the scorer publishes each second of silence. It is not waited for longer than the last.
_LINES, _LINE_EVERY_S, _READ_WITHIN_S = 4, 5.0, 300.0


class PortError(CryptovolError):
    """A port cannot be listened on; the message names it and how to choose another."""

    exit_code = USAGE


def choose_port(wanted: int, option: str) -> int:
    """Return the requested port, or a free one for 0.

    Raises:
        PortError: something listens there.
    """
    if wanted == 0:
        return free_port(HOST)
    reason = why_taken(wanted, HOST)
    if reason is not None:
        raise PortError(
            f"port {wanted} on {HOST} cannot be used: {reason}; choose another with {option} (0: a free one)"
        )
    return wanted


@dataclass(frozen=True)
class Machine:
    """Shared parameters of all services.

    Attributes:
        settings: the configuration, which the services read by themselves.
        home: the Dagster instance's folder.
        dagster_port: of the webserver.
        mlflow_port: of the MLflow UI.
        simulator_port: of the simulator, where one is to run.
        code_port: of Dagster's code server.
        with_live: whether featurizer and scorer run beside the recorder.
    """

    settings: Settings
    home: Path
    dagster_port: int
    mlflow_port: int
    simulator_port: int | None = None
    code_port: int = field(default_factory=lambda: free_port(HOST))
    with_live: bool = True
    _lost: list[str] = field(default_factory=list)
    _broker: list[str] = field(default_factory=list)

    @property
    def logs(self) -> Path:
        """Folder of the services' logs."""
        return self.settings.storage.data_dir / "logs"

    @property
    def workspace(self) -> Path:
        """Path of the file with the address of the code server, for webserver and daemon."""
        return self.home / "workspace.yaml"

    @property
    def dagster_url(self) -> str:
        """Address of Dagster."""
        return f"http://{HOST}:{self.dagster_port}"

    @property
    def mlflow_url(self) -> str:
        """Address of MLflow."""
        return f"http://{HOST}:{self.mlflow_port}"

    def mlflow_runs(self) -> str:
        """Return the address of the runs in MLflow; where that is unknown, of all experiments."""
        found = experiment(self.mlflow_url, self.settings.mlflow.experiment)
        page = "experiments" if found is None else f"experiments/{found['experiment_id']}"
        return mlflow_page(self.mlflow_url, page)

    def environment(self, **more: str) -> Mapping[str, str]:
        """Return the environment of a service: links lead to the chosen ports."""
        return {
            **os.environ,
            "DAGSTER_HOME": str(self.home),
            "CRYPTOVOL__DAGSTER__UI_URL": self.dagster_url,
            "CRYPTOVOL__MLFLOW__UI_URL": self.mlflow_url,
            **more,
        }

    def recorder(self) -> Service:
        """Return the recorder service: the real feed for ever, or the simulator's market to its end."""
        simulated = self.simulator_port is not None
        source = ("--until-closed", "--url", f"ws://{HOST}:{self.simulator_port}") if simulated else ()
        patience = ("--connect-timeout", f"{SIMULATOR_WITHIN_S:g}") if simulated else ()
        # The embedded broker ends with the recorder, and is read to its end before that.
        stays = simulated and self.with_live
        log = self.logs / "recorder.log"
        return Service(
            name="recorder",
            command=(*_CRYPTOVOL, "ingest", "--json", *source, *patience, *(("--stay",) if stays else ())),
            # This supervisor runs the webserver, so a closed hour may be reported to it at once.
            environment=self.environment(CRYPTOVOL__DAGSTER__REPORT_CLOSED_HOURS="true"),
            log=log,
            is_ready=_says(log, _STARTED),
            finishes=simulated,
            is_done=self._is_read_to_its_end() if stays else None,
            stop_s=RECORDER_STOP_S,
            after=self._note_broker,
        )

    def live(self) -> list[Service]:
        """Return scorer and featurizer, in the order in which they stop: both before the recorder.

        The embedded broker's address is known once the recorder has started, and changes with each start.
        """
        return [self._live(name, verb) for name, verb in zip(LIVE, ("score", "featurize"), strict=True)]

    def _live(self, name: str, verb: str) -> Service:
        log, command = self.logs / f"{name}.log", (*_CRYPTOVOL, verb, "--json")
        embedded = self.settings.kafka.is_embedded
        return Service(
            name=name,
            command=(lambda: (*command, "--bootstrap", self._broker[-1])) if embedded else command,
            environment=self.environment(),
            log=log,
            is_ready=_says(log, _STARTED),
            essential=False,
            stop_s=LIVE_STOP_S,
            needs="recorder" if embedded else None,
        )

    def _note_broker(self) -> None:
        """Note where the recorder's broker is, from its newest line about that."""
        log = self.logs / "recorder.log"
        started = [line for line in _tail(log).splitlines() if _STARTED.encode() in line]
        if not started:
            raise InstanceError(f"{log} does not say where its broker is")
        self._broker[:] = [json.loads(started[-1])["bootstrap_servers"]]

    def _is_read_to_its_end(self) -> Callable[[int], bool]:
        """Return a check whether the simulated market is over, and featurizer and scorer have read it."""
        log, ended = self.logs / "recorder.log", dict[int, tuple[float, dict[Path, int]]]()
        logs = [self.logs / f"{name}.log" for name in LIVE]

        def is_read(start: int) -> bool:
            # A recorder that was started again has a market of its own.
            if start not in ended:
                if b'"event": "feed_ended"' not in _tail(log, min(8_192, log.stat().st_size - start)):
                    return False
                ended[start] = time.monotonic(), {log: _size(log) for log in logs}
            ended_s, sizes = ended[start]
            late = time.monotonic() - ended_s > _READ_WITHIN_S
            return late or all(self._is_silent(log, since) for log, since in sizes.items())

        return is_read

    def _is_silent(self, log: Path, since: int) -> bool:
        """Return whether featurizer or scorer counted at most a row a second and product of late."""
        counts = [int(count) for count in _PROGRESS.findall(_tail(log, _size(log) - since))[-_LINES:]]
        most = len(self.settings.coinbase.products) * _LINES * _LINE_EVERY_S
        return len(counts) == _LINES and counts[-1] > 0 and counts[-1] - counts[0] <= most

    def minutes_import(self) -> Service:
        """Return the import of the last days' minutes, which ends when they are complete."""
        return Service(
            name="minutes",
            command=(sys.executable, "-m", "cryptovol_dagster.machine.first_days"),
            environment=self.environment(),
            log=self.logs / "minutes.log",
            is_ready=lambda _: True,  # nothing waits for it
            essential=False,
            finishes=True,
        )

    def simulator(self, arguments: Sequence[str]) -> Service:
        """Return the simulator, which plays its market once; `arguments` are options of ``simulate``."""
        log = self.logs / "simulator.log"
        address = ("--port", str(self.simulator_port), "--once", "--json")
        return Service(
            name="simulator",
            command=(*_CRYPTOVOL, "simulate", *address, *arguments),
            environment=self.environment(),
            log=log,
            is_ready=_says(log, '"event": "listening"'),
            finishes=True,
            # Played many times too fast, minutes of a market are gone before a process has started.
            follows=LIVE if self.with_live else (),
        )

    def dagster(self, *, essential: bool) -> list[Service]:
        """Return webserver, daemon and code server, in the order in which they stop; the last starts first.

        `dagster dev` runs the same three below a process of 100 MB, and ends all of them when one dies.
        """
        workspace = f"--workspace={self.workspace}"
        address = f"--host={HOST}"
        code = Service(
            name="Dagster code server",
            command=(
                *(sys.executable, "-m", "dagster", "code-server", "start", "--module-name", LOCATION),
                *(address, f"--port={self.code_port}", "--log-level=warning"),
            ),
            environment=self.environment(),
            log=self.logs / "dagster-code-server.log",
            is_ready=lambda _: accepts(f"{HOST}:{self.code_port}"),
            essential=essential,
            before=self._prepare_code_server,
            after=self._end_lost_runs,
        )
        daemon = Service(
            name="Dagster daemon",
            command=(sys.executable, "-m", "dagster._daemon", "run", workspace, "--log-level=warning"),
            environment=self.environment(),
            log=self.logs / "dagster-daemon.log",
            is_ready=lambda _: True,
            essential=essential,
            needs=code.name,
        )
        webserver = Service(
            name="Dagster",
            command=(
                *(sys.executable, "-m", "dagster_webserver", workspace, "--dagster-log-level=warning"),
                *(address, f"--port={self.dagster_port}"),
            ),
            environment=self.environment(),
            log=self.logs / "dagster.log",
            is_ready=lambda _: answers(f"{self.dagster_url}/server_info"),
            essential=essential,
            needs=code.name,
        )
        return [webserver, daemon, code]

    def mlflow(self, *, essential: bool) -> Service:
        """Return the MLflow UI service; runs write to its store directly."""
        return Service(
            name="MLflow",
            command=(
                *(sys.executable, "-m", "mlflow", "server"),
                *("--backend-store-uri", self.settings.mlflow_tracking_uri),
                *("--host", HOST, "--port", str(self.mlflow_port), "--workers", "1"),
            ),
            # Its job runners are for GenAI: eight processes, 1.1 GB.
            environment=self.environment(
                MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_DISABLE_TELEMETRY="true"
            ),
            log=self.logs / "mlflow.log",
            is_ready=lambda _: answers(f"{self.mlflow_url}/health"),
            essential=essential,
            before=self._prepare_mlflow,
        )

    def _prepare_mlflow(self) -> None:
        """Create the store before the server does: a run that starts beside it must not find half of it.

        A failure is reported by the server, which meets the same.
        """
        store = local_store(self.settings)
        if store is not None and not is_prepared(store):
            with (self.logs / "mlflow.log").open("ab") as log:
                subprocess.run(
                    _MLFLOW_STORE, env=dict(self.environment()), stdout=log, stderr=log, check=False
                )

    def _prepare_code_server(self) -> None:
        address = {"host": HOST, "port": self.code_port, "location_name": LOCATION}
        content = yaml.safe_dump({"load_from": [{"grpc_server": address}]}).encode()
        # On a full disk a restart need not write.
        if not self.workspace.exists() or self.workspace.read_bytes() != content:
            replace_file(self.workspace, content)
        self._list_lost_runs()

    def _list_lost_runs(self) -> None:
        """Record the runs whose worker ended with an earlier Dagster: they would block the queue for ever.

        In a new home this creates the databases before Dagster's processes start.
        """
        with opening(self.home):
            listed = subprocess.run(
                (*_LOST_RUNS, "list"),
                env=dict(self.environment()),
                capture_output=True,
                text=True,
                check=False,
            )
        if listed.returncode != 0:
            raise InstanceError(f"{self.home} cannot be asked for lost runs: {_last_line(listed.stderr)}")
        self._lost[:] = listed.stdout.split()

    def _end_lost_runs(self) -> None:
        """End the recorded runs when Dagster serves, so that they are tried again."""
        if not self._lost:
            return
        ended = subprocess.run(
            (*_LOST_RUNS, "end", *self._lost),
            env=dict(self.environment()),
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            raise InstanceError(f"{self.home}: lost runs cannot be ended: {_last_line(ended.stderr)}")
        self._lost.clear()


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _tail(log: Path, size: int = 65_536) -> bytes:
    if not log.exists():
        return b""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - size))
        return file.read()


def _says(log: Path, words: str) -> Callable[[int], bool]:
    """Return a readiness check that searches words in a log, from the beginning of this start."""

    def says(start: int) -> bool:
        with log.open("rb") as file:
            file.seek(start)
            return words.encode() in file.read(65_536)

    return says


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no reason given"
