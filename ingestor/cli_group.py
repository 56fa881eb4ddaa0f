"""Shared parts of every `cryptovol` command: error messages, verbs imported on demand, ``--config``.

A `CryptovolError` is written for users: its message is the line. Anything else is a bug and keeps
its traceback.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ingestor.errors import CryptovolError, did_you_mean, one_line
from ingestor.settings.load import ENV_CONFIG_FILE


class _Failure(click.ClickException):
    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self._code = code

    @property
    def exit_code(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - click reads it, never sets it
        return self._code


class OneLineErrorsGroup(click.Group):
    """A click group whose verbs may raise this project's exceptions."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; its failure becomes ``Error: <line>`` and an exit code."""
        try:
            return super().invoke(ctx)
        except CryptovolError as error:
            raise _Failure(one_line(str(error)), error.exit_code) from None
        except click.NoSuchOption as error:
            if error.option_name != "--config" or error.ctx is None:
                raise
            program = ctx.command_path
            verb = error.ctx.command_path.removeprefix(program).strip()
            raise click.UsageError(
                f"--config comes before the verb: {program} --config FILE {verb}", error.ctx
            ) from None


class VerbGroup(OneLineErrorsGroup):
    """A group that also offers verbs of other rooms, imported only when one of them is used.

    Args:
        elsewhere: verb → ``module:attribute`` of its click command.
        unknown_verb: text to add to the error about an unknown verb.
        kwargs: of `click.Group`.
    """

    def __init__(self, *, elsewhere: Mapping[str, str], unknown_verb: str = "", **kwargs: Any) -> None:
        super().__init__(context_settings={"help_option_names": ["-h", "--help"]}, **kwargs)
        self._elsewhere = elsewhere
        self._unknown_verb = unknown_verb
        self.params.append(
            click.Option(
                ["--config"],
                type=click.Path(path_type=Path),
                expose_value=False,
                callback=_remember_config,
                help=f"Configuration file (default: ${ENV_CONFIG_FILE}, else ./config.yaml).",
            )
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the verbs: the group's own, then the others in order."""
        return [*super().list_commands(ctx), *self._elsewhere]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a verb, importing it where it lives elsewhere."""
        target = self._elsewhere.get(cmd_name)
        if target is None:
            return super().get_command(ctx, cmd_name)
        module, _, name = target.partition(":")
        return getattr(importlib.import_module(module), name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb that the arguments begin with."""
        if args[0].startswith("-") or self.get_command(ctx, args[0]) is not None:
            return super().resolve_command(ctx, args)
        # Click knows only the verbs that are registered in it.
        hint = did_you_mean(args[0], self.list_commands(ctx)) or f" {self._unknown_verb}"
        raise click.UsageError(f"No such command '{args[0]}'.{hint}".strip(), ctx)


def _remember_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is not None:
        # Processes started from here (code servers, recorders) read the same file.
        os.environ[ENV_CONFIG_FILE] = str(path.resolve())
