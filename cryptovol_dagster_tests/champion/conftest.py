"""Fixtures of the room."""

from cryptovol_dagster_tests.champion.world import copied, skill, world  # noqa: F401
