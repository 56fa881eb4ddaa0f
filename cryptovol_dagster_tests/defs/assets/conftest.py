"""Fixtures of the champion's tests."""

from cryptovol_dagster_tests.champion.world import copied, world  # noqa: F401
