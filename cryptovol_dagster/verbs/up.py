"""`cryptovol up`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from cryptovol_dagster.machine import first_days
from cryptovol_dagster.machine.instance import ensure_dagster_home
from cryptovol_dagster.machine.reachable import free_port
from cryptovol_dagster.machine.run import keep_running, port_option
from cryptovol_dagster.machine.services import HOST, Machine, choose_port
from cryptovol_dagster.machine.supervisor import Service
from cryptovol_dagster.verbs.synthetic import SIMULATED_DIR, TAIL_HOURS, create_market
from ingestor.settings import Settings, load_settings
from ingestor.synthetic import require_real


@click.command()
@click.option(
    "--simulate",
    is_flag=True,
    help=f"Record a synthetic market, offline, in {SIMULATED_DIR} (recreated at each start).",
)
@click.option(
    "--speed", default="60", show_default=True, metavar="1|N|max", help="Simulated: market seconds a second."
)
@click.option(
    "--hours",
    default=24,
    show_default=True,
    type=click.IntRange(1, 1_000),
    help="Simulated: length of the market.",
)
@click.option("--seed", default=7, show_default=True, type=click.IntRange(min=0), help="Simulated: its seed.")
@click.option("--no-live", is_flag=True, help="Without live features and scores.")
@click.option("--no-dagster", is_flag=True, help="Without Dagster: no hour is computed, no model trained.")
@click.option("--no-mlflow", is_flag=True, help="Without the MLflow UI; runs are tracked all the same.")
@click.option(
    "--no-import",
    is_flag=True,
    help="Without the last days' minutes from the exchange (history.first_import_days).",
)
@port_option("Dagster", 3000)
@port_option("MLflow", 5000)
@click.option(
    "--json", "as_json", is_flag=True, help="Print events as JSON lines; the first has the addresses."
)
def up(
    simulate: bool,
    speed: str,
    hours: int,
    seed: int,
    no_live: bool,
    no_dagster: bool,
    no_mlflow: bool,
    no_import: bool,
    dagster_port: int,
    mlflow_port: int,
    as_json: bool,
) -> None:
    """Run everything on this machine: recorder, live scores, Dagster (webserver and daemon) and MLflow.

    The market is recorded, hours that close are worked off by themselves, models are retrained hourly. Every
    second gets its features and, once there is a champion, its score. A part that dies is started again; when
    the recorder cannot be kept running everything ends. Ctrl-C stops all in order, the scorer first, then the
    featurizer and the recorder: what was read and published is stored. A second Ctrl-C does not wait.

    Missing minutes of the last 120 days (history.first_import_days) are imported from the exchange in
    the background. Dagster then computes these days and trains the first models of the minutes. The next
    start continues an import that broke off.

    The broker is the configured one, or the embedded one inside the recorder.

    \b
    cryptovol up                              # the real market
    cryptovol up --simulate                   # offline: an hour of market each minute
    cryptovol up --simulate --speed 600 --hours 48
    cryptovol status                          # from another terminal
    """
    # The recorder refuses the future, so whole hours of the past are played.
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours + 1)
    settings = (
        create_market(SIMULATED_DIR, start, by="cryptovol up --simulate")
        if simulate
        else _of_the_real_market()
    )
    machine = Machine(
        settings,
        ensure_dagster_home(settings),
        0 if no_dagster else choose_port(dagster_port, "--dagster-port"),
        0 if no_mlflow else choose_port(mlflow_port, "--mlflow-port"),
        free_port(HOST) if simulate else None,
        with_live=not no_live,
    )
    services: list[Service] = [*([] if no_live else machine.live()), machine.recorder()]
    if simulate:
        services.append(machine.simulator(_market(start, speed, hours, seed)))
    if not no_dagster:
        services += machine.dagster(essential=False)
    if not no_mlflow:
        services.append(machine.mlflow(essential=False))
    notes = (
        [f"market   synthetic, {hours} h at speed {speed}; `cryptovol status --simulated`"]
        if simulate
        else []
    )
    if not simulate and not no_import and first_days.is_wanted(settings):
        services.append(machine.minutes_import())
        notes.append(first_days.announcement(settings, trains=not no_dagster))
    keep_running(machine, services, as_json=as_json, notes=notes)


def _of_the_real_market() -> Settings:
    """Return the effective configuration, unless its folder contains a synthetic market.

    Raises:
        SyntheticFolderError: it does.
    """
    settings = load_settings().settings
    require_real(settings, "cryptovol up")
    return settings


def _market(start: datetime, speed: str, hours: int, seed: int) -> list[str]:
    """Return the simulator's options for whole hours."""
    return [
        *("--start", f"{start:%Y-%m-%dT%H:%M:%SZ}", "--hours", str(hours + TAIL_HOURS)),
        *("--speed", speed, "--seed", str(seed)),
    ]
