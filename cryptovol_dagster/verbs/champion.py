"""`cryptovol champion` and `cryptovol rollback`: the champion, and the return to an earlier model."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from cryptovol_dagster.verbs.options import chain_option, json_option
from ingestor.settings import load_settings
from ingestor.verbs.output import print_table

if TYPE_CHECKING:
    from cryptovol_dagster.champion.rollback import Rollback
    from cryptovol_dagster.core.promotion.decision import Champion, Decision

#: Decisions shown without --all: the last ones that changed or compared something.
SHOWN = 20


@click.command()
@chain_option
@click.option("--all", "show_all", is_flag=True, help="Every partition, also those where nothing was due.")
@json_option
def champion(chain_name: str, show_all: bool, as_json: bool) -> None:
    """Show the champion, since when, its challenger, and earlier decisions.

    A challenger takes the champion's place when its average precision is above the champion's with its lower
    bound, on rows that neither learned from. PROMOTE, HOLD, REJECT and INSUFFICIENT_DATA are results of the
    rule, ROLLBACK by a person.

    \b
    Examples:
      cryptovol champion
      cryptovol champion --all --json
    """
    from cryptovol_dagster.chains import spec_of
    from cryptovol_dagster.core.promotion.decision import NOTHING_DUE
    from cryptovol_dagster.lake import decisions
    from cryptovol_dagster.lake.files import Lake

    settings = load_settings().settings
    spec = spec_of(settings, chain_name)
    every = decisions.history(Lake(settings.storage.lake_dir), spec)
    shown = [one for one in every if show_all or one.kind != NOTHING_DUE or one.changed]
    if as_json:
        newest = None if not every else every[-1].to_dict()
        click.echo(json.dumps({"newest": newest, "history": [one.to_dict() for one in shown]}))
        return
    if not every:
        click.echo(f"{spec.name}: nothing was decided yet: `{decisions.evaluate_command(spec.name)}` decides")
        return
    for line in standing_lines(every):
        click.echo(line)
    click.echo()
    columns = ("as of", "verdict", "about", "champion afterwards", "AP difference", "why")
    rows = map(_history_cells, shown if show_all else shown[-SHOWN:])
    print_table(columns, rows, words=set(columns) - {"AP difference"})


def standing_lines(every: list[Decision]) -> list[str]:
    """Return lines on the champion, since when, and on its challenger."""
    newest = every[-1]
    if newest.champion is None:
        return [f"champion: none ({newest.reasons[0]})"]
    since = newest
    for one in reversed(every):
        if not newest.champion.is_same_model(one.champion):
            break
        since = one
    unproven = ", unproven" if newest.champion.unproven else ""
    lines = [f"champion: {_named(newest.champion)}{unproven}, since {since.as_of}"]
    contest = newest.contest
    if contest is None:
        lines.append("challenger: nobody")
    else:
        analyzed = "not analyzed yet"
        if contest.looked_until_ns is not None:
            analyzed = f"analyzed up to {_when(contest.looked_until_ns)}"
        lines.append(f"challenger: {_named(contest.challenger)}, from {_when(contest.start_ns)}, {analyzed}")
    lines.append(f"newest decision: {newest.verdict} as of {newest.as_of}")
    return [*lines, *(f"  {reason}" for reason in newest.reasons)]


def _history_cells(one: Decision) -> list[str]:
    difference = None if one.challenge is None else one.challenge.difference
    found = "–"
    if difference is not None:
        found = f"{difference.estimate:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    who = "nobody" if one.champion is None else str(one.champion)
    return [one.as_of, one.verdict, one.kind, who, found, "; ".join(one.reasons)]


@click.command()
@chain_option
@click.option(
    "--to",
    default="previous",
    show_default=True,
    metavar="previous|VERSION",
    help="Model: `previous` for the champion before, or a version number of the registry.",
)
@click.option("--reason", default="no reason was given", help="Reason, for the record.")
@click.option("--dry-run", is_flag=True, help="Only show the changes.")
@json_option
def rollback(chain_name: str, to: str, reason: str, dry_run: bool, as_json: bool) -> None:
    """Make an earlier model champion again, and bar the present one from automatic promotion.

    The registry's alias `champion` moves, and a decision ROLLBACK is written. The model taken out is barred,
    and whatever is promoted next must win on rows that come after now.

    \b
    Examples:
      cryptovol rollback --dry-run
      cryptovol rollback --reason "false alarms all night"
      cryptovol rollback --to 7 --reason "back to last week's"
    """
    from cryptovol_dagster.chains import spec_of
    from cryptovol_dagster.champion.rollback import require_champion, roll_back_to
    from cryptovol_dagster.lake.files import Lake
    from cryptovol_dagster.lake.latest import Reports
    from cryptovol_dagster.tracking.registry import PREVIOUS, Registry
    from cryptovol_dagster.tracking.runs import connect

    if to != PREVIOUS and not to.isdigit():
        raise click.UsageError(f"--to {to}: expected previous or a version number")
    settings = load_settings().settings
    storage = settings.storage
    spec = spec_of(settings, chain_name)
    lake = Lake(storage.lake_dir)
    require_champion(lake, spec)
    done = roll_back_to(
        lake,
        spec,
        Reports(storage.reports_dir, storage.artifacts_dir),
        Registry(connect(settings), spec),
        to=to,
        reason=reason,
        dry_run=dry_run,
    )
    if as_json:
        click.echo(
            json.dumps({"dry_run": dry_run, "aliases": done.aliases, "decision": done.decision.to_dict()})
        )
        return
    for line in _rolled_back(done, dry_run):
        click.echo(line)


def _rolled_back(done: Rollback, dry_run: bool) -> list[str]:
    now = done.decision.champion
    would = "would be" if dry_run else "is"
    lines = [
        f"champion {would} {'none' if now is None else _named(now)}, instead of {_named(done.taken_out)}",
        f"{done.taken_out} {would} barred; the next promotion depends on rows from "
        f"{_when(done.decision.used_until_ns)} on",
    ]
    return lines if dry_run else [*lines, done.aliases]


def _named(model: Champion) -> str:
    version = "" if model.registry_version is None else f" (registry version {model.registry_version})"
    return f"{model}{version}"


def _when(time_ns: int) -> str:
    return f"{datetime.fromtimestamp(time_ns / 1e9, UTC):%Y-%m-%d %H:%M}"
