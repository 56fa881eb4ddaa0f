"""`cryptovol alert`: the rules and targets of alerts, the last alerts, and a test."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import click

from cryptovol_dagster.verbs.options import json_option
from ingestor.errors import FAILED, USAGE, CryptovolError, did_you_mean
from ingestor.settings import Settings, load_settings
from ingestor.verbs.output import print_table

if TYPE_CHECKING:
    from cryptovol_dagster.alerts.outbox import Alert, Delivery
    from cryptovol_dagster.alerts.targets import Target

#: Value of --test without a target.
_ALL = "all targets"
_HOW = "set CRYPTOVOL__ALERTS__TARGETS__PHONE=ntfys://… in .env (docs/guides/alerts.md)"


class NoTargetError(CryptovolError):
    """There is no such target; the message names those that exist."""

    exit_code = USAGE


@click.command()
@click.option(
    "--test",
    "tested",
    metavar="[TARGET]",
    is_flag=False,
    flag_value=_ALL,
    help="Send a test alert to a target, or to all, and show the answers. Exit code 1 if one failed.",
)
@click.option("--list", "listed", is_flag=True, help="Show rules, targets and the last alerts (default).")
@click.option(
    "--last", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Alerts shown."
)
@json_option
def alert(tested: str | None, listed: bool, last: int, as_json: bool) -> None:
    """Show rules, targets and the last alerts, or test the targets.

    A target is an Apprise URL. It contains a secret, so it belongs into .env or the environment:

    \b
      CRYPTOVOL__ALERTS__TARGETS__PHONE=ntfys://my-secret-topic
      CRYPTOVOL__ALERTS__TARGETS__MAIL=mailtos://user:password@example.org

    Rules are in config.yaml; without any, episodes, faults and failed runs raise alerts:

    \b
      alerts:
        rules:
          - {name: very likely, when: probability, at_least: 0.9, products: [BTC-USD]}
          - {name: opened, when: episode_opened, chain: seconds, targets: [phone]}
          - {name: failed, when: run_failed, targets: [mail], cool_down_s: 0}

    when: probability, episode_opened, episode_closed, feed_silent, champion_old, model_refused, run_failed.

    \b
    Examples:
      cryptovol alert
      cryptovol alert --test
      cryptovol alert --test phone
    """
    if tested is not None and listed:
        raise click.UsageError("--test and --list exclude each other")
    settings = load_settings().settings
    if tested is None:
        _list(settings, last, as_json)
    else:
        _test(settings, tested, as_json)


def _test(settings: Settings, tested: str, as_json: bool) -> None:
    from cryptovol_dagster.alerts.targets import check_targets, targets_of

    targets = targets_of(settings)
    if not targets:
        raise NoTargetError(f"alerts have no target: {_HOW}")
    if tested not in (_ALL, *targets):
        raise NoTargetError(f"{tested} is not a target: {', '.join(targets)}.{did_you_mean(tested, targets)}")
    chosen = targets if tested == _ALL else {tested: targets[tested]}
    problems = check_targets(chosen)
    usable = [target for name, target in chosen.items() if name not in problems]
    # Together: one that hangs holds up no other.
    with ThreadPoolExecutor(len(chosen)) as pool:
        timeout_s = settings.monitoring.alert_timeout_s
        answers = pool.map(lambda target: _send_test(target, timeout_s), usable)
        problems |= dict(zip([target.name for target in usable], answers, strict=True))
    found = {name: problems[name] for name in chosen}
    if as_json:
        click.echo(json.dumps({name: {"taken": not why, "reason": why} for name, why in found.items()}))
    else:
        for name, why in found.items():
            click.echo(f"{name}: {f'FAILED: {why}' if why else 'the test alert was accepted'}")
    if any(found.values()):
        raise click.exceptions.Exit(FAILED)


def _send_test(target: Target, timeout_s: float) -> str:
    from cryptovol_dagster.alerts.outbox import Alert
    from cryptovol_dagster.alerts.targets import send_once
    from cryptovol_dagster.alerts.texts import of_test

    now_ns = time.time_ns()
    text = of_test(target.name, now_ns, socket.gethostname())
    alert = Alert(
        *(f"test/{target.name}/{now_ns}", "test", "test", target.name, now_ns, now_ns),
        *(text.title, text.body, text.detail),
    )
    return send_once(target, alert, timeout_s)


def _list(settings: Settings, last: int, as_json: bool) -> None:
    from cryptovol_dagster.alerts.service import outbox_of, rules_of
    from cryptovol_dagster.alerts.targets import targets_of

    rules_of(settings)  # an unknown chain is an error here too
    targets, rules = list(targets_of(settings)), settings.alerts.rules
    newest = outbox_of(settings).newest(last)
    if as_json:
        alerts = [_as_dict(alert, deliveries) for alert, deliveries in newest]
        dumped = [rule.model_dump() for rule in rules]
        click.echo(json.dumps({"rules": dumped, "targets": targets, "alerts": alerts}))
        return
    click.echo(f"targets: {', '.join(targets) or f'none, so alerts are in the log only; {_HOW}'}\n")
    columns = ("rule", "when", "of", "targets", "cool-down")
    rows = [
        (
            rule.name,
            rule.when if rule.at_least is None else f"{rule.when} ≥ {rule.at_least:g}",
            " ".join([*rule.products, *([rule.chain] if rule.chain else [])]) or "all",
            ", ".join(rule.targets) or "all",
            f"{rule.cool_down_s:g} s",
        )
        for rule in rules
    ]
    print_table(columns, rows, words=set(columns) - {"cool-down"})
    click.echo()
    if not newest:
        click.echo("alerts: none so far")
        return
    print_table(("time", "rule", "alert", "state"), [_cells(*one) for one in newest])


def _cells(alert: Alert, deliveries: list[Delivery]) -> tuple[str, str, str, str]:
    from cryptovol_dagster.alerts.texts import time_of

    return time_of(alert.at_ns), alert.rule, alert.title, "; ".join(map(_state, deliveries)) or "in the log"


def _state(delivery: Delivery) -> str:
    why = f" ({delivery.tries} tries, {delivery.reason})" if delivery.reason else ""
    return f"{delivery.target}: {delivery.state}{why}"


def _as_dict(alert: Alert, deliveries: list[Delivery]) -> dict[str, object]:
    return {**vars(alert), "deliveries": [vars(one) for one in deliveries]}
