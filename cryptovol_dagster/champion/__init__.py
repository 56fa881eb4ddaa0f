"""Carrying a promotion decision out: scoring the rows it needs, the registry's aliases, rollback."""
