"""Commands in README, docs and `--help` can be typed: verbs, options, arguments, targets of make exist."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from cryptovol_dagster.cli import VERBS, main
from cryptovol_dagster_tests.places import DOCS, REPOSITORY

PAGES = (
    *(REPOSITORY / folder / "README.md" for folder in ("", "findings", "cryptovol_dagster_tests")),
    *sorted(DOCS.rglob("*.md")),
)
_by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
_FENCED = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:\.venv/bin/)?(?:cryptovol|dagster|make) [^`]+)`")
#: What stands for something else: `cryptovol replay [--data-file F]…`.
_PLACEHOLDER = re.compile(r"[…\[\]|<>{}*\\]|\b[A-Z]+\b(?!=)(?![-:])")
_ACTIVATE = "source .venv/bin/activate"
_OTHER_PROGRAMS = {"docker", "cp", "export", "source", "pytest", "pg_dumpall"}
_TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def fenced(page: Path) -> Iterator[str]:
    for block in _FENCED.findall(page.read_text()):
        yield from block.replace("\\\n", " ").splitlines()


def inline(text: str) -> Iterator[str]:
    yield from (command for command in _INLINE.findall(text) if not _PLACEHOLDER.search(command))


def of_help(verb: str) -> Iterator[str]:
    """The examples that a verb's help gives; what explains one stands two spaces behind it, or before it."""
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    for line in (command.help or "").splitlines():
        if "  cryptovol " in f"  {line}":
            yield "cryptovol " + re.split(r"\s{2,}", f"  {line}".split("  cryptovol ", 1)[1])[0]


def parse(command: str, *, mentioned: bool = False) -> None:
    """Parse one command as its program would, running nothing; one only mentioned may lack what it needs."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if words[:2] == ["docker", "compose"] and "exec" in words:
        words = words[words.index("exec") + 2 :]
    if not words:
        return
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "make":
        assert [word for word in arguments if "=" not in word and word not in _TARGETS] == []
    elif program == "cryptovol":
        _parse_by(main, arguments, mentioned)
    elif program == "dagster":
        from dagster._cli import cli

        _parse_by(cli, arguments, mentioned)
    elif program == "python":
        assert arguments[0] != "-m" or find_spec(arguments[1]) is not None
    else:
        known = program in _OTHER_PROGRAMS or (REPOSITORY / program).is_file()
        assert known, f"{program}: not a program of this repository"


def _parse_by(command: click.Command, arguments: list[str], mentioned: bool) -> None:
    context = None
    while True:
        try:
            context = command.make_context(command.name, list(arguments), parent=context)
        except click.exceptions.Exit:  # --help and --version
            return
        except (click.MissingParameter, click.BadOptionUsage):
            if mentioned:
                return
            raise
        except click.BadParameter as error:
            # The reader's own file; nothing of ours refuses one before it runs.
            if "does not exist" not in error.format_message():
                raise
            return
        if not isinstance(command, click.Group):
            return
        _, found, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command = found


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`--config` names a file for child processes: not for the tests after this one."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@_by_page
def test_what_a_page_tells_to_type_can_be_typed(page: Path) -> None:
    told = [(command, False) for command in fenced(page)]
    told += [(command, True) for command in inline(page.read_text())]
    for command, mentioned in told:
        try:
            parse(command, mentioned=mentioned)
        except (AssertionError, click.UsageError) as error:
            pytest.fail(f"{page}: {command}: {error}")


@_by_page
def test_a_bare_program_is_on_the_path(page: Path) -> None:
    activated = False
    for command in fenced(page):
        activated |= command.startswith(_ACTIVATE)
        bare = command.startswith(("cryptovol ", "dagster "))
        assert activated or not bare, f"{page}: {command}: `{_ACTIVATE}` stands nowhere before it"


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_of_a_verbs_help_can_be_typed(verb: str) -> None:
    for command in of_help(verb):
        if _PLACEHOLDER.search(command):
            continue
        try:
            parse(command)
        except (AssertionError, click.UsageError) as error:
            pytest.fail(f"cryptovol {verb} --help: {command}: {error}")


def test_a_command_that_does_not_exist_would_be_seen() -> None:
    for wrong in ("cryptovol replya", "cryptovol replay --outt x", "dagster asset materialise", "make dmeo"):
        with pytest.raises((AssertionError, click.UsageError)):
            parse(wrong)
    assert sum(len(list(of_help(verb))) for verb in VERBS) > 40
