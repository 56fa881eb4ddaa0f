"""Tests of alerts: texts, outbox, sending."""
