"""Mistakes in targets and rules are one line that names the rule, and never a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingestor.settings import SettingsError, load_settings
from ingestor.settings.alerts import DEFAULT_RULES

SECRET = "s3cretT0ken"
URL = f"json://{SECRET}"
_PREFIX = "CRYPTOVOL__ALERTS__TARGETS"


def load(tmp_path: Path, yaml: str, **environ: str) -> str:
    (tmp_path / "config.yaml").write_text(yaml)
    with pytest.raises(SettingsError) as raised:
        load_settings(tmp_path / "config.yaml", environ=environ)
    assert SECRET not in str(raised.value)
    return str(raised.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    "environ", [{f"{_PREFIX}__PHONE": URL}, {_PREFIX: f'{{"phone": "{URL}"}}'}, {_PREFIX: ""}]
)
def test_targets_come_from_the_environment_and_are_never_shown(environ: dict[str, str]) -> None:
    loaded = load_settings(environ=environ)
    targets = loaded.settings.alerts.targets
    assert {name: url.get_secret_value() for name, url in targets.items()} == (
        {"phone": URL} if any(environ.values()) else {}
    )
    assert loaded.settings.alerts.rules == DEFAULT_RULES
    assert SECRET not in str([*loaded.rows()]) + repr(loaded)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            f"{{phone: {SECRET}}}",
            "alerts.targets.phone: is not a URL such as ntfys://… (the value is not shown)",
        ),
        (f"{{phone: [{SECRET}]}}", "alerts.targets.phone: Input should be a valid string"),
        (
            f"{{'{URL}': phone://x}}",
            "alerts.targets: a target's name consists of a-z, 0-9, - and _; found a URL",
        ),
        (f"'{URL}'", "alerts.targets: Input should be a valid dictionary"),
    ],
)
def test_a_bad_target_is_named_by_its_key(tmp_path: Path, targets: str, message: str) -> None:
    assert load(tmp_path, f"alerts: {{targets: {targets}}}").endswith(f": {message}")


def test_a_bad_target_of_the_environment_is_named_by_its_variable(tmp_path: Path) -> None:
    name = f"{_PREFIX}__PHONE"
    assert load(tmp_path, "", **{name: SECRET}).startswith(
        f"environment {name}: alerts.targets.phone: is not"
    )
    assert load(tmp_path, "", **{_PREFIX: f'{{"phone": "{URL}"'}).startswith(
        f"environment {_PREFIX}: not valid"
    )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            "when: probability, at_leest: 1",
            "rule 'big': unknown key 'at_leest'; keys are name, when",
        ),
        ("when: probability, at_leest: 1", "Did you mean 'at_least'?"),
        ("when: probability", "rule 'big': probability needs at_least"),
        ("when: feed_silent, at_least: 0.5", "rule 'big': feed_silent does not use at_least"),
        ("when: feed_silent, products: [BTC-USD]", "rule 'big': feed_silent does not use products"),
        ("when: run_failed, chain: seconds", "rule 'big': run_failed does not use chain"),
        ("when: probability, at_least: 2", "rule 'big': at_least: Input should be less than or equal to 1"),
        (
            "when: episode_open",
            "rule 'big': when is 'episode_open'; it is one of probability",
        ),
        ("when: episode_open", "Did you mean 'episode_opened'?"),
        ("targets: [phone]", "rule 'big': when: Field required"),
        ("when: run_failed, targets: [fone]", "unknown target 'fone'; known: phone. Did you mean 'phone'?"),
        (f"when: run_failed, targets: ['{URL}']", "unknown target a URL instead of a name; known: phone."),
        (
            "when: episode_opened, products: [BTC-USDT]",
            "rule 'big' with unknown product 'BTC-USDT'; known: BTC-USD, ETH-USD. Did you mean 'BTC-USD'?",
        ),
    ],
)
def test_a_bad_rule_is_named(tmp_path: Path, rule: str, message: str) -> None:
    yaml = f"alerts:\n  targets: {{phone: '{URL}'}}\n  rules:\n    - {{name: big, {rule}}}\n"
    found = load(tmp_path, yaml)
    assert found.startswith("config.yaml:3: alerts.rules")
    assert message in found


def test_two_rules_of_one_name_and_the_name_of_the_webhook_are_refused(tmp_path: Path) -> None:
    rule = "{name: a, when: run_failed}"
    assert load(tmp_path, f"alerts: {{rules: [{rule}, {rule}]}}").endswith("two rules have the name 'a'")
    hook = f"monitoring: {{alert_webhook_url: 'http://{SECRET}'}}\nalerts: {{targets: {{webhook: '{URL}'}}}}"
    assert "alerts.targets has a target 'webhook', the name of monitoring.alert_webhook_url" in load(
        tmp_path, hook
    )
    assert "must begin with http:// or https://" in load(
        tmp_path, f"monitoring: {{alert_webhook_url: 'ftp://{SECRET}'}}"
    )
