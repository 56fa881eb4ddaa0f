"""Options that several verbs share."""

from __future__ import annotations

import click

from cryptovol_dagster.core.specs import SECONDS

partition_option = click.option(
    "--partition",
    metavar="KEY",
    help="Partition: an hour (2026-04-04-03:00) or, for the minutes, a day (2024-12-31), as of its end; UTC. "
    "By default the newest with labels.",
)
chain_option = click.option(
    "--chain",
    "chain_name",
    metavar="NAME",
    default=SECONDS,
    show_default=True,
    help="seconds, or a horizon of the minutes: minutes_h5, minutes_h15.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
