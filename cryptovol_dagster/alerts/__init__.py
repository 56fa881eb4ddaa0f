"""Alerts: their texts, the outbox that keeps them, and how they are sent."""
