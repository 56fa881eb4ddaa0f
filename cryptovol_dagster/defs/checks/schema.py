"""Checks of the schema: column names, types and order of stored tables."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import dagster as dg
import pyarrow as pa

from cryptovol_dagster.defs.checks.framework import Check, Rule, Stored


def schema_check(asset: dg.AssetKey, schema: pa.Schema, *, description: str = "") -> Check:
    """Declare the check that a table has exactly the columns and types of the code."""
    return Check(
        asset,
        "schema",
        _schema_rule(schema),
        description=description or f"Columns and types of {asset.path[-1]} are those that the core writes.",
        blocking=True,
    )


def _schema_rule(expected: pa.Schema) -> Rule:
    def rule(stored: Stored) -> list[str]:
        found = stored.table.schema
        sentences = [
            f"{stored.asset}: expected column {field.name} {field.type}, found {_type_of(found, field.name)}"
            for field in expected
            if _type_of(found, field.name) != str(field.type)
        ]
        unknown = [name for name in found.names if name not in expected.names]
        if unknown:
            sentences.append(f"{stored.asset}: found unexpected columns: {', '.join(unknown)}")
        return sentences

    return rule


def _type_of(schema: pa.Schema, name: str) -> str:
    return str(schema.field(name).type) if name in schema.names else "no such column"
