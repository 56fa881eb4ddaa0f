"""The code location: `dagster dev`, `workspace.yaml` and `[tool.dagster]` load this module."""

from cryptovol_dagster.defs.build import build_defs
from ingestor.settings import load_settings

defs = build_defs(load_settings().settings)
