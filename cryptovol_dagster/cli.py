"""The `cryptovol` command: the recorder's verbs and the pipeline's, imported only when one is used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import click

from ingestor.cli_errors import OneLineErrorsGroup
from ingestor.settings.load import ENV_CONFIG_FILE

#: verb -> where its click command lives. Help texts come from there, so nothing is said twice.
VERBS: Mapping[str, str] = {
    "config": "ingestor.cli:config",
    "simulate": "ingestor.simulator.command:simulate",
    "ingest": "ingestor.cli:ingest",
    "check-stream": "ingestor.cli:check_stream",
    "replay": "cryptovol_dagster.verbs.replay:replay",
    "train": "cryptovol_dagster.verbs.train:train",
    "evaluate": "cryptovol_dagster.verbs.evaluate:evaluate",
    "report": "cryptovol_dagster.verbs.report:report",
    "backfill": "cryptovol_dagster.verbs.backfill:backfill",
    "demo": "cryptovol_dagster.demo:demo",
    "ui": "cryptovol_dagster.ui:ui",
}


class _LazyGroup(OneLineErrorsGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = VERBS.get(cmd_name)
        if target is None:
            return None
        module, _, name = target.partition(":")
        return getattr(importlib.import_module(module), name)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="Configuration file (default: $CRYPTOVOL_CONFIG, else ./config.yaml).",
)
@click.version_option(package_name="cryptovol")
def main(config_file: Path | None) -> None:
    """Record crypto markets, learn when they turn violent, prove each number.

    \b
    Try it without the exchange:   cryptovol demo
    Record the real market:        cryptovol ingest
    See what is configured:        cryptovol config
    """
    if config_file is not None:
        # Dagster's code servers and other child processes read the same file.
        import os

        os.environ[ENV_CONFIG_FILE] = str(config_file.resolve())


if __name__ == "__main__":
    main()
