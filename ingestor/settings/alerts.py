"""Settings of alerts: who receives them, and which events raise one."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from ingestor.errors import did_you_mean
from ingestor.settings.base import PositiveFloat, Section

AlertKind = Literal[
    "probability",
    "episode_opened",
    "episode_closed",
    "feed_silent",
    "champion_old",
    "model_refused",
    "run_failed",
]
KINDS: tuple[str, ...] = get_args(AlertKind)
#: Kinds about one product, and about a chain.
OF_A_PRODUCT = ("probability", "episode_opened", "episode_closed")
OF_A_CHAIN = (*OF_A_PRODUCT, "champion_old", "model_refused")
#: Name of the target that `monitoring.alert_webhook_url` is.
WEBHOOK = "webhook"
_TARGET_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_HAS_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.")


def _url(url: SecretStr) -> SecretStr:
    if not _HAS_SCHEME.match(url.get_secret_value()):
        raise ValueError("is not a URL such as ntfys://… (the value is not shown)")
    return url


class AlertRule(Section):
    """One rule: the events that raise an alert, and who receives it."""

    name: str = Field(min_length=1, max_length=60, pattern=r"^[^/\x00-\x1f]+$")
    when: AlertKind
    products: tuple[str, ...] = ()
    chain: str | None = None
    at_least: Annotated[float, Field(gt=0, le=1)] | None = None
    targets: tuple[str, ...] = ()
    cool_down_s: Annotated[float, Field(ge=0)] = 300.0

    def __str__(self) -> str:
        return f"{self.name}: {self.when}"

    @model_validator(mode="wrap")
    @classmethod
    def _named(cls, values: Any, validate: ModelWrapValidatorHandler[AlertRule]) -> AlertRule:
        # A rule is named by its name: its place in the list says little.
        try:
            return validate(values)
        except ValidationError as error:
            name = values.get("name", "without name") if isinstance(values, dict) else "without name"
            raise ValueError(f"rule '{name}': {_explain(error, cls.model_fields)}") from None

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> AlertRule:
        if (self.when == "probability") != (self.at_least is not None):
            word = "needs" if self.at_least is None else "does not use"
            raise ValueError(f"rule '{self.name}': {self.when} {word} at_least")
        if self.products and self.when not in OF_A_PRODUCT:
            raise ValueError(f"rule '{self.name}': {self.when} does not use products")
        if self.chain is not None and self.when not in OF_A_CHAIN:
            raise ValueError(f"rule '{self.name}': {self.when} does not use chain")
        return self


def _explain(error: ValidationError, known: Collection[str]) -> str:
    first = error.errors()[0]
    key, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'; keys are {', '.join(known)}.{did_you_mean(key, known)}"
    if first["type"] == "literal_error":
        hint = did_you_mean(str(first["input"]), KINDS)
        return f"{key} is {first['input']!r}; it is one of {', '.join(KINDS)}.{hint}"
    return f"{key}: {message}" if key else message


DEFAULT_RULES = (
    AlertRule(name="episode opened", when="episode_opened"),
    AlertRule(name="feed silent", when="feed_silent", cool_down_s=600.0),
    AlertRule(name="model refused", when="model_refused", cool_down_s=3_600.0),
    AlertRule(name="champion old", when="champion_old", cool_down_s=86_400.0),
    AlertRule(name="run failed", when="run_failed", cool_down_s=0.0),
)


class AlertsSettings(Section):
    """Alerts: who receives them, and which events raise one (`cryptovol alert`)."""

    targets: dict[str, Annotated[SecretStr, AfterValidator(_url)]] = Field(
        default_factory=dict,
        description="receivers by name, each an Apprise URL. A URL contains a secret, so it belongs into the "
        "environment or .env: CRYPTOVOL__ALERTS__TARGETS__PHONE=ntfys://…",
    )
    rules: tuple[AlertRule, ...] = Field(
        default=DEFAULT_RULES,
        description="events that raise an alert; a list here replaces the default. Keys: `name`, `when`, "
        "`products` and `chain` (default: all), `at_least` (a probability), `targets` (default: all), and "
        "`cool_down_s`, the pause after an alert of the same rule about the same product, chain or run "
        "(default 300)",
    )
    feed_silent_after_s: PositiveFloat = Field(
        default=60.0, description="`feed_silent` after this long without a message of the feed"
    )
    give_up_after_s: PositiveFloat = Field(
        default=3_600.0,
        description="an alert that a target did not take is given up after this long, and not before "
        "monitoring.alert_tries tries",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _unset_if_empty(cls, targets: object) -> object:
        # compose.yaml passes the variable on, empty where docker/.env does not set it.
        return targets or {}

    @field_validator("targets")
    @classmethod
    def _plain_names(cls, targets: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name in targets:
            if not _TARGET_NAME.fullmatch(name):
                shown = "a URL" if "://" in name else f"'{name}'"
                raise ValueError(f"a target's name consists of a-z, 0-9, - and _; found {shown}")
        return targets

    @field_validator("rules")
    @classmethod
    def _names_differ(cls, rules: tuple[AlertRule, ...]) -> tuple[AlertRule, ...]:
        names = [rule.name for rule in rules]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(f"two rules have the name '{twice[0]}'")
        return rules


def check_names(alerts: AlertsSettings, has_webhook: bool, followed: Collection[str]) -> None:
    """Compare the names in rules with those that the rest of the configuration has.

    Args:
        alerts: the section.
        has_webhook: whether `monitoring.alert_webhook_url` is set.
        followed: `coinbase.products`.

    Raises:
        ValueError: a rule names a target or product that does not exist; the message begins with the key.
    """
    if has_webhook and WEBHOOK in alerts.targets:
        raise ValueError(
            f"alerts.targets has a target '{WEBHOOK}', the name of monitoring.alert_webhook_url; rename it"
        )
    targets = [*alerts.targets, *([WEBHOOK] if has_webhook else [])]
    for rule in alerts.rules:
        for what, named, known in (("target", rule.targets, targets), ("product", rule.products, followed)):
            for name in named:
                if name in known:
                    continue
                # Somebody may write a URL here, and that is a secret.
                shown = "a URL instead of a name" if "://" in name else f"'{name}'"
                raise ValueError(
                    f"alerts.rules has rule '{rule.name}' with unknown {what} {shown}; known: "
                    f"{', '.join(known) or 'none'}.{'' if '://' in name else did_you_mean(name, known)}"
                )
