"""Errors about alerts: their configuration, and the outbox."""

from __future__ import annotations

from ingestor.errors import USAGE, CryptovolError


class AlertTargetError(CryptovolError):
    """A target cannot be used as it is configured; the message names it, and never its URL."""

    exit_code = USAGE


class AlertRuleError(CryptovolError):
    """A rule names something that does not exist; the message names the rule."""

    exit_code = USAGE


class OutboxError(CryptovolError):
    """The outbox cannot be read or written; the message names the file."""
