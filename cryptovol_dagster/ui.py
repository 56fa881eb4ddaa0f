"""`cryptovol ui`: Dagster (webserver, daemon, code server) and the MLflow UI on this machine, one command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from cryptovol_dagster.resources.instance import ensure_dagster_home
from ingestor.settings import Settings, load_settings


class UiError(Exception):
    """The user interfaces cannot be started, or one of them ended by itself."""


@click.command()
@click.option("--dagster-port", default=3000, show_default=True, help="Port of the Dagster UI, on loopback.")
@click.option("--mlflow-port", default=5000, show_default=True, help="Port of the MLflow UI, on loopback.")
def ui(dagster_port: int, mlflow_port: int) -> None:
    """Open Dagster (webserver and daemon) and MLflow on the configured data folder.

    The daemon runs the schedules and sensors: closed raw hours are picked up by themselves and models are
    retrained hourly. Stop with Ctrl-C.

    \b
    cryptovol ui                                            # your own data
    CRYPTOVOL__STORAGE__DATA_DIR=data/demo cryptovol ui     # what `make demo` made
    """
    settings = load_settings().settings
    for port in (dagster_port, mlflow_port):
        _refuse_taken(port)
    home = ensure_dagster_home(settings)
    environment = {**os.environ, "DAGSTER_HOME": str(home)}
    logs = settings.storage.data_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    commands = {"Dagster": _dagster(dagster_port), "MLflow": _mlflow(settings, mlflow_port)}
    children = {
        name: _start(command, environment, logs / f"{name.lower()}.log") for name, command in commands.items()
    }
    click.echo(f"Dagster  http://127.0.0.1:{dagster_port}")
    click.echo(f"MLflow   http://127.0.0.1:{mlflow_port}")
    click.echo(f"reports  {settings.storage.reports_dir}")
    click.echo(f"logs     {logs}\nopening takes some 20 s; Ctrl-C stops both")
    _stay(children)


def _dagster(port: int) -> Sequence[str]:
    return [
        *(sys.executable, "-m", "dagster", "dev", "-m", "cryptovol_dagster.definitions"),
        *("-h", "127.0.0.1", "-p", str(port), "--log-level", "warning"),
    ]


def _mlflow(settings: Settings, port: int) -> Sequence[str]:
    uri = settings.mlflow_tracking_uri
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]


def _start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UiError(
                f"port {port} on 127.0.0.1 cannot be used: {error.strerror}; choose another one"
            ) from None


def _stay(children: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """Wait until a child ends or we are told to stop; never leave one behind."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        while True:
            for name, child in children.items():
                if child.poll() is not None:
                    raise UiError(f"{name} ended by itself with exit code {child.returncode}; see its log")
            time.sleep(0.5)
    except KeyboardInterrupt:
        click.echo("stopping")
    finally:
        for child in children.values():
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    # The group, not the process: Dagster and MLflow start servers of their own.
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
