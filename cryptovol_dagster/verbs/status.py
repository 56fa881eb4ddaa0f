"""`cryptovol status`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.machine.status import SERVICES, AssetLook, ModelsLook, Status, look
from cryptovol_dagster.verbs.options import json_option
from cryptovol_dagster.verbs.synthetic import SIMULATED_DIR, open_market
from ingestor.settings import Settings, load_settings
from ingestor.verbs.output import open_console, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Reports shown, of which there is one for each hour in the lake.
_REPORTS_SHOWN = 5
WATCH_EVERY_S = 5.0


@click.command()
@json_option
@click.option("--watch", is_flag=True, help="Refresh every 5 s until Ctrl-C.")
@click.option(
    "--require",
    multiple=True,
    type=click.Choice(SERVICES),
    help="Take it for wrong when this service does not run (may be repeated).",
)
@click.option("--simulated", is_flag=True, help="Show the market of `cryptovol up --simulate`.")
@click.pass_context
def status(
    context: click.Context, as_json: bool, watch: bool, require: tuple[str, ...], simulated: bool
) -> None:
    """Show the status: raw storage, lake, models, reports, services, disk space.

    Exit code 1 when there is a problem, with a sentence each: a recorder that stores nothing, closed hours
    without labels for 15 minutes, a service that the configuration (or --require) needs and that does not
    answer, less than 1 GiB of disk space. A recorder or a user interface that was not started is not a
    problem.

    \b
    cryptovol status
    cryptovol status --require recorder --require dagster     # for a monitor
    cryptovol status --json
    """
    settings = (
        open_market(SIMULATED_DIR, by="cryptovol up --simulate") if simulated else load_settings().settings
    )
    if watch and as_json:
        raise click.UsageError("--watch is for terminals: omit --json")
    found = look(settings, time.time_ns(), require)
    if watch:
        found = _watch(settings, require, found)
    elif as_json:
        print_json(found.as_dict())
    else:
        open_console().print(_render(found))
    context.exit(1 if found.problems else 0)


def _watch(settings: Settings, require: Sequence[str], found: Status) -> Status:
    """Refresh the status until Ctrl-C; return the last one."""
    from rich.live import Live

    with suppress(KeyboardInterrupt), Live(_render(found), auto_refresh=False) as live:
        live.refresh()
        while True:
            time.sleep(WATCH_EVERY_S)
            found = look(settings, time.time_ns(), require)
            live.update(_render(found), refresh=True)
    return found


def _render(found: Status) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, text in _rows(found):
        table.add_row(name, Text(text))
    for problem in found.problems:
        table.add_row(Text("wrong", style="bold red"), Text(problem, style="red"))
    if not found.problems:
        table.add_row(Text("fine", style="bold green"), _calm(found))
    return table


def _calm(found: Status) -> str:
    if any(one.runs for one in found.services):
        return "nothing is wrong"
    return "nothing runs, nothing is wrong: `cryptovol up` starts everything"


def _rows(found: Status) -> list[tuple[str, str]]:
    raw = found.raw
    rows = [(one.name, f"{one.state}  {one.address}") for one in found.services]
    newest = "no tick yet" if raw.newest_tick_ns is None else f"newest tick {_when(raw.newest_tick_ns)}"
    rows.append(("raw", f"{newest}, {raw.rows_today:,} ticks today, {raw.hours} hours with ticks"))
    open_hours = f", open: {', '.join(raw.open[:3])}" if raw.open else ""
    rows.append(("closed", f"{raw.closed} hours, the newest {raw.newest_closed or '–'}{open_hours}"))
    if found.live is not None:
        rows.append(("scores", str(found.live)))
    if found.minutes:
        rows.append(("minutes", found.minutes))
    rows += [(one.asset, _asset(one)) for one in found.lake]
    rows += [(f"{one.timescale} models", _models(one)) for one in found.models]
    rows += [("report", f"{name}  {_when(at)}") for name, at in list(found.reports.items())[:_REPORTS_SHOWN]]
    if found.waits_for is not None:
        rows.append(("waits for", found.waits_for))
    rows.append(("free disk", f"{found.free_bytes / 1024**3:,.1f} GiB"))
    return rows


def _asset(one: AssetLook) -> str:
    missing = f", {len(one.missing)} closed hours missing" if one.missing else ""
    unit = "day" if one.newest and len(one.newest) == len("2025-12-01") else "hour"
    units = unit if one.partitions == 1 else f"{unit}s"
    return f"{one.partitions} {units}, the newest {one.newest or '–'}{missing}"


def _models(one: ModelsLook) -> str:
    evaluated = f"evaluated as of {one.evaluated}: {one.verdict}" if one.evaluated else one.learning or ""
    champion = f"{one.champion} as of {one.champion_as_of}" if one.champion else "nobody"
    decided = f"; decided {one.decision} as of {one.decided}, champion {champion}" if one.decided else ""
    taught = f"; {one.sufficiency}" if one.sufficiency else ""
    return evaluated + taught + decided


def _when(time_ns: int) -> str:
    return f"{datetime.fromtimestamp(time_ns / NS, UTC):%Y-%m-%d %H:%M:%S}"
