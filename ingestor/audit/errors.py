"""Errors of an audit."""

from __future__ import annotations

from ingestor.errors import CryptovolError


class AuditError(CryptovolError):
    """There is nothing to audit, or the span is invalid; the message is one line."""


class UnaccountedError(CryptovolError):
    """Something in raw storage is unaccounted for; the message is one line that names it."""
