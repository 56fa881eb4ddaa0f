"""Options that several verbs share."""

from __future__ import annotations

import click

partition_option = click.option(
    "--partition",
    metavar="HOUR",
    help="As-of hour, UTC, e.g. 2026-04-04-03:00 (default: the newest hour with labels).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
