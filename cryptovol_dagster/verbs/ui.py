"""`cryptovol ui`."""

from __future__ import annotations

import click

from cryptovol_dagster.machine.instance import ensure_dagster_home
from cryptovol_dagster.machine.run import keep_running, port_option
from cryptovol_dagster.machine.services import Machine, choose_port
from cryptovol_dagster.verbs.synthetic import require_created
from ingestor.settings import load_settings


@click.command()
@click.option("--no-mlflow", is_flag=True, help="Without the MLflow UI; runs are tracked all the same.")
@port_option("Dagster", 3000)
@port_option("MLflow", 5000)
@click.option(
    "--json", "as_json", is_flag=True, help="Print events as JSON lines; the first has the addresses."
)
def ui(no_mlflow: bool, dagster_port: int, mlflow_port: int, as_json: bool) -> None:
    """Open Dagster (webserver and daemon) and MLflow on the configured data folder.

    The daemon runs the schedules and sensors: closed raw hours are picked up by themselves and models are
    retrained hourly. Stop with Ctrl-C. `cryptovol up` does the same and records, too.

    \b
    cryptovol ui                                       # your own data
    cryptovol --config data/demo/config.yaml ui        # the market of `cryptovol demo`
    """
    settings = load_settings().settings
    require_created(settings)
    machine = Machine(
        settings,
        ensure_dagster_home(settings),
        choose_port(dagster_port, "--dagster-port"),
        0 if no_mlflow else choose_port(mlflow_port, "--mlflow-port"),
    )
    services = machine.dagster(essential=True)
    if not no_mlflow:
        services.append(machine.mlflow(essential=True))
    keep_running(machine, services, as_json=as_json)
