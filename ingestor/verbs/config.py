"""``cryptovol config``."""

from __future__ import annotations

import click

from ingestor.settings.load import LoadedSettings, load_settings
from ingestor.verbs.output import print_json, print_table


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print {key: {value, source}} as JSON.")
def config(as_json: bool) -> None:
    """Show the effective configuration, and the source of each value.

    Order of precedence: environment (CRYPTOVOL__SECTION__KEY), .env beside the file, the file, the default.

    \b
    All of it:            cryptovol config
    Of another file:      cryptovol --config other.yaml config
    Override one value:   CRYPTOVOL__KAFKA__BOOTSTRAP_SERVERS=127.0.0.1:9092 cryptovol config
    """
    loaded = load_settings()
    if as_json:
        print_json({key: {"value": value, "source": source} for key, value, source in loaded.rows()})
    else:
        _print_config(loaded)


def _print_config(loaded: LoadedSettings) -> None:
    click.echo(f"configuration of {loaded.config_file or 'no file: defaults and environment'}")
    print_table(("key", "value", "source"), list(loaded.rows()))
