"""The `cryptovol` command: the recorder's verbs and the pipeline's, imported only when one is used."""

from __future__ import annotations

import click

from ingestor.cli import VERBS as RECORDER_VERBS
from ingestor.cli_group import VerbGroup

#: In the order in which a new user needs them.
VERBS = {
    "demo": "cryptovol_dagster.verbs.demo:demo",
    "up": "cryptovol_dagster.verbs.up:up",
    "ui": "cryptovol_dagster.verbs.ui:ui",
    "status": "cryptovol_dagster.verbs.status:status",
    **RECORDER_VERBS,
    "featurize": "cryptovol_dagster.verbs.featurize:featurize",
    "score": "cryptovol_dagster.verbs.score:score",
    "alert": "cryptovol_dagster.verbs.alert:alert",
    "replay": "cryptovol_dagster.verbs.replay:replay",
    "reference-set": "cryptovol_dagster.verbs.reference_set:reference_set",
    "import-bars": "cryptovol_dagster.verbs.import_bars:import_bars",
    "backfill": "cryptovol_dagster.verbs.backfill:backfill",
    "backtest": "cryptovol_dagster.verbs.backtest:backtest",
    "train": "cryptovol_dagster.verbs.train:train",
    "evaluate": "cryptovol_dagster.verbs.evaluate:evaluate",
    "champion": "cryptovol_dagster.verbs.champion:champion",
    "rollback": "cryptovol_dagster.verbs.champion:rollback",
    "infer": "cryptovol_dagster.verbs.infer:infer",
    "export": "cryptovol_dagster.verbs.export:export",
    "report": "cryptovol_dagster.verbs.report:report",
    "notebook": "cryptovol_dagster.verbs.notebook:notebook",
    "leak-audit": "cryptovol_dagster.verbs.leak_audit:leak_audit",
}


@click.group(cls=VerbGroup, elsewhere=VERBS)
@click.version_option(package_name="cryptovol")
def main() -> None:
    """Record crypto markets, learn when they turn violent, prove each number.

    \b
    Try it without the exchange:   cryptovol demo
    Everything on this machine:    cryptovol up        (offline: cryptovol up --simulate)
    Only record the real market:   cryptovol ingest
    Show the status:               cryptovol status
    Show the configuration:        cryptovol config
    """


if __name__ == "__main__":
    main()
