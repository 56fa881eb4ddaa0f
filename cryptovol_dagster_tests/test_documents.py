"""The generated pages of the documentation are what the code renders, and they are complete."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys

import click
import pytest

from cryptovol_dagster.chains import timescale_specs
from cryptovol_dagster.cli import VERBS, main
from cryptovol_dagster.core.features.catalogue import feature_list
from cryptovol_dagster.documents import COMMAND, PAGES, render_commands, render_features, render_settings
from cryptovol_dagster_tests.places import DOCS, REPOSITORY
from ingestor.settings import Settings
from ingestor.settings.load import LoadedSettings

SPECS = timescale_specs(Settings())


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    """Every page as a process of its own renders it: click keeps a command's help option of its first use."""
    code = "import json; from cryptovol_dagster.documents import PAGES as pages; "
    code += "print(json.dumps({file: render() for file, render in pages.items()}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("file", PAGES)
def test_the_page_is_what_the_code_renders(file: str, rendered: dict[str, str]) -> None:
    assert (DOCS / file).read_text(encoding="utf-8") == rendered[file], COMMAND


@pytest.mark.parametrize("name", ["seconds", "minutes_h5"])
def test_every_feature_has_a_row_of_six_cells(name: str) -> None:
    spec = SPECS[name]
    rows = [line for line in render_features(name).splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == sorted(
        (feature.name for feature in feature_list(spec)),
        key=[row.split("`")[1] for row in rows].index,
    )
    assert {row.replace(r"\|", "").count("|") for row in rows} == {7}


def test_every_setting_has_its_meaning_its_type_and_its_variable() -> None:
    parts = re.split(r"^### `(.+)`\n", render_settings(), flags=re.MULTILINE)[1:]
    entries = dict(zip(parts[::2], parts[1::2], strict=True))
    assert set(entries) == {key for key, *_ in LoadedSettings(Settings(), {}, None).rows()}
    for key, entry in entries.items():
        meaning, about, *_ = entry.strip().split("\n\n")
        assert len(meaning) > len("Eta."), key
        variable = f"CRYPTOVOL__{key.upper().replace('.', '__')}"
        assert re.fullmatch(
            rf"(text|number|whole number|list of|true|date|path|mapping|`).*; `{variable}`", about
        )


def test_every_command_stands_there_with_its_help() -> None:
    page = render_commands()
    assert re.findall(r"^## `cryptovol (.+)`$", page, re.MULTILINE) == list(VERBS)
    for name in VERBS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        options = [one.opts[0] for one in command.params if isinstance(one, click.Option) and not one.hidden]
        section = page.split(f"## `cryptovol {name}`\n")[1].split("\n## ")[0]
        assert [option for option in options if option not in section] == []


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "findings/README.md",
        "cryptovol_dagster_tests/README.md",
    ],
)
def test_pages_outside_the_site_link_what_exists(page: str) -> None:
    """Those of `docs/` are checked by the site's build (`make check`)."""
    file = REPOSITORY / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", file.read_text(encoding="utf-8"))
    assert [link for link in links if not (file.parent / link).exists()] == []


def _texts_of_the_code() -> str:
    """Return every string of the product, a placeholder where it inserts a value, without backticks."""
    found = []
    for room in ("cryptovol_dagster", "ingestor"):
        for file in sorted((REPOSITORY / room).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(str(p.value) if isinstance(p, ast.Constant) else "\0" for p in node.values)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found).replace("`", "")


def test_messages_that_troubleshooting_explains_are_messages_of_the_code() -> None:
    """A user who searches the page for a line on the screen finds it."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.*`.*)$", page, re.MULTILINE)
    texts = _texts_of_the_code()
    unknown = []
    for heading in headings:
        quoted = re.findall(r"`([^`]+)`", heading)
        pieces = [p.strip(" :;,()") for q in quoted for p in re.split(r"…|\d+|\bN\b|'[^']*'|;", q)]
        if not any(len(piece) > 8 and piece in texts for piece in pieces):
            unknown.append(heading)
    assert unknown == [
        "`required variable … is missing a value` (containers)",
        "`audit` exits with code 1",
        "`… is before dagster.partitions_start, …`",  # the setting's name is inserted
    ]
