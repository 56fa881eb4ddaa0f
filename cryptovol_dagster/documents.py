"""The generated pages of the documentation: features, settings and commands, as the code declares them.

``python -m cryptovol_dagster.documents`` writes them into ``docs/``. A test compares the files with the code.
Belongs here: how a declaration becomes Markdown. Does not belong here: anything that a person writes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from cryptovol_dagster.chains import timescale_specs
from cryptovol_dagster.cli import main as cryptovol
from cryptovol_dagster.core.cards.markdown import table
from cryptovol_dagster.core.evaluation.report import json_schema
from cryptovol_dagster.core.features.block import WARM_PERCENT
from cryptovol_dagster.core.features.catalogue import (
    MAX_REQUIRED_WINDOW_BARS,
    Feature,
    feature_hash,
    feature_list,
)
from cryptovol_dagster.core.features.meanings import meaning
from ingestor.settings.load import ENV_PREFIX, LoadedSettings
from ingestor.settings.sections import Settings

COMMAND = "python -m cryptovol_dagster.documents"
#: Columns of a terminal, as which the help of a command is laid out.
_HELP_COLUMNS = 80

_FEATURES_HEAD = """# Features of the timescale `{name}`

{count} columns, version `{version}`. `{command}` writes this page from the code.
[Add a feature](../guides/add-a-feature.md) says how to declare one more.

A row is known at its bar's end and uses nothing later. Windows are in bars of {bar_s} s, the row's own
included, and count the valid bars among them; a window is warm when at least {warm} % are valid, otherwise
its feature is null. r is a bar's log return, GK its Garman–Klass term. No feature is a level of prices,
sizes or volumes.

*Optional* features may be null in a valid row: those of trades and of quoted sizes where the feed has none,
cross features where no other product of the reference set is there, and windows over {longest} bars until
they are full. Every other feature is a finite number in every valid row.

Cross features are means over the products of `timescales.reference_set`, the row's own left out. Live rows
(`ticks.features`) lack them. Another set than the default adds its hash to the version of whole rows.
"""


_SETTINGS_HEAD = """# Settings

Every setting, with its default. `{command}` writes this page from the code.

A value comes from the first of these places that gives one: the environment, `.env`, `config.yaml`, the
default. `cryptovol config` prints every value in force and where it came from. An unknown key is an error.

In `config.yaml` a dot is one level of indentation. In the environment it is two underscores, behind the
prefix `{prefix}`. A list or a mapping is JSON there:

```sh
export CRYPTOVOL__KAFKA__BOOTSTRAP_SERVERS=127.0.0.1:9092
export CRYPTOVOL__COINBASE__PRODUCTS='["BTC-USD", "SOL-USD"]'
```
"""

_COMMANDS_HEAD = """# Commands

Every command with its help. `{command}` writes this page from the code.

Exit code 0 means that all went well. A failure is one line on stderr and another exit code. Many commands
print numbers as JSON with `--json`.
"""

_EVALUATION_HEAD = """# The evaluation's record

`reports/model_eval.json` holds everything that was measured in a training: `cryptovol evaluate` shows it, and
cards, pictures and the champion's decision come from it. `{command}` writes this page from the code.

[model_eval.schema.json](model_eval.schema.json) is the same as a JSON Schema.
[Evaluation and verdicts](../concepts/evaluation.md) explains the numbers. A number that does not exist is
null.
"""


def render_features(chain: str) -> str:
    """Return the page of a chain's features: one table per family."""
    spec = timescale_specs(Settings())[chain]
    features = feature_list(spec)
    text = _FEATURES_HEAD.format(
        name=spec.grid,
        command=COMMAND,
        count=len(features),
        version=feature_hash(spec),
        bar_s=spec.bar_interval_s,
        warm=WARM_PERCENT,
        longest=f"{MAX_REQUIRED_WINDOW_BARS:,}",
    )
    for family in dict.fromkeys(feature.family for feature in features):
        rows = [_row(feature, spec.bar_interval_s) for feature in features if feature.family == family]
        lines = table(["name", "meaning", "unit", "bars", "made of", "formula"], rows)
        text += "\n".join([f"\n## {family[0].upper()}{family[1:]}\n", *lines, ""])
    return text


def _row(feature: Feature, bar_interval_s: int) -> list[str]:
    sources = ", ".join(f"`{name}`" for name in feature.sources)
    formula = feature.formula.replace("|", r"\|") + (" (optional)" if feature.optional else "")
    words = meaning(feature.name, bar_interval_s)
    return [f"`{feature.name}`", words, feature.unit, f"{feature.window_bars:,}", sources, formula]


def render_settings() -> str:
    """Return the page of every setting: what it does, its type, default and environment variable."""
    settings = Settings()
    defaults = {key: value for key, value, _ in LoadedSettings(settings, {}, None).rows()}
    return _SETTINGS_HEAD.format(command=COMMAND, prefix=ENV_PREFIX) + "".join(
        _section(settings, "", defaults)
    )


def _section(model: BaseModel, prefix: str, defaults: Mapping[str, str]) -> Iterator[str]:
    """Yield the Markdown of a section: its own settings first, then the sections in it."""
    schema = type(model).model_json_schema()
    fields = type(model).model_fields
    sections = {name for name in fields if isinstance(getattr(model, name), BaseModel)}
    for name, field in fields.items():
        if name in sections:
            continue
        key = prefix + name
        default = f"default `{defaults[key]}`" if defaults[key] else "empty by default"
        variable = f"`{ENV_PREFIX}{key.upper().replace('.', '__')}`"
        kind = _kind(schema["properties"][name], schema)
        yield f"\n### `{key}`\n\n{_sentence(field.description or '')}\n\n{kind}; {default}; {variable}\n"
    for name in fields:
        if name in sections:
            section = getattr(model, name)
            about = fields[name].description or (type(section).__doc__ or "").splitlines()[0]
            yield f"\n## `{prefix}{name}`\n\n{_sentence(about)}\n"
            yield from _section(section, f"{prefix}{name}.", defaults)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def render_evaluation() -> str:
    """Return the page of the evaluation's record: one table per part, the whole first."""
    text = _EVALUATION_HEAD.format(command=COMMAND)
    for name, part in json_schema()["$defs"].items():
        rows = [[f"`{field}`", _kind(value, None)] for field, value in part["properties"].items()]
        lines = table(["field", "value"], rows)
        about = " ".join(part["description"].split())
        text += "\n".join([f"\n## {name}\n", f"{about}\n", *lines, ""])
    return text


def _kind(schema: Mapping[str, Any], root: Mapping[str, Any] | None) -> str:
    """Return in words what values a JSON schema allows; a part of `root` is spelled out, else linked."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _kind(root["$defs"][name], root) if root else f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_kind(one, root) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    match schema["type"]:
        case "array":
            return f"list of: {_kind(schema['items'], root)}"
        case "object" if "properties" in schema:
            return "mapping of " + ", ".join(f"`{name}`" for name in schema["properties"])
        case "object":
            return f"mapping of text to {_kind(schema['additionalProperties'], root)}"
        case "string":
            return {"date": "date", "path": "path", "password": "text, never shown"}.get(
                schema.get("format", ""), "text"
            )
        case "boolean":
            return "true or false"
        case "null":
            return "nothing"
    return {"integer": "whole number", "number": "number"}[schema["type"]] + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    words = {
        "exclusiveMinimum": "over",
        "minimum": "at least",
        "exclusiveMaximum": "below",
        "maximum": "at most",
    }
    found = [f"{word} {schema[key]:,}" for key, word in words.items() if key in schema]
    return f" {' and '.join(found)}" if found else ""


def render_commands() -> str:
    """Return the page of every command and its help."""
    parent = click.Context(cryptovol, info_name="cryptovol", **cryptovol.context_settings)
    text = _COMMANDS_HEAD.format(command=COMMAND)
    for name in cryptovol.list_commands(parent):
        command = cryptovol.get_command(parent, name)
        assert command is not None
        context = click.Context(command, parent=parent, info_name=name, terminal_width=_HELP_COLUMNS)
        help_text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
        text += f"\n## `cryptovol {name}`\n\n```text\n{help_text}\n```\n"
    return text


#: By path in `docs/`.
PAGES: dict[str, Callable[[], str]] = {
    "reference/features.md": partial(render_features, "seconds"),
    "reference/features-minutes.md": partial(render_features, "minutes_h5"),
    "reference/settings.md": render_settings,
    "reference/cli.md": render_commands,
    "reference/model-evaluation.md": render_evaluation,
}


def write_pages(docs: Path) -> None:
    """Write every generated page below `docs`."""
    for path, render in PAGES.items():
        (docs / path).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
