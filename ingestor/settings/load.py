"""Merge defaults, ``config.yaml``, ``.env`` and the environment, with the source of each value."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

from ingestor.errors import USAGE, CryptovolError, did_you_mean
from ingestor.settings.sections import Settings

ENV_PREFIX = "CRYPTOVOL__"
#: Names the file instead of ./config.yaml; the command line's --config sets it for child processes too.
ENV_CONFIG_FILE = "CRYPTOVOL_CONFIG"
#: Configurations that a command of the pipeline creates.
_CREATED_BY = {
    "data/demo/config.yaml": "cryptovol demo",
    "data/simulated/config.yaml": "cryptovol up --simulate",
}


class SettingsError(CryptovolError):
    """The configuration is unusable; the message is one line that names key, file and line."""

    exit_code = USAGE


@dataclass(frozen=True)
class LoadedSettings:
    """The effective settings, and the source of the value of each dotted key."""

    settings: Settings
    sources: Mapping[str, str]
    config_file: Path | None

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield (dotted key, value as text, source) for every leaf, secrets hidden."""
        for key, value in _leaves(self.settings):
            yield key, _display(value), self.sources.get(key, "default")


# The two bases' own kinds of model_config are both plain dictionaries.
class _Layers(BaseSettings, Settings):  # pyright: ignore[reportIncompatibleVariableOverride]
    """The shape of `Settings` for pydantic-settings' own readers of .env and environment."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )


def load_settings(
    config_file: Path | None = None, environ: Mapping[str, str] | None = None
) -> LoadedSettings:
    """Read and validate the configuration.

    Args:
        config_file: the YAML file; by default ``$CRYPTOVOL_CONFIG``, else ``./config.yaml`` where it exists.
        environ: replaces ``os.environ`` (tests).

    Raises:
        SettingsError: an unreadable file, an unknown key or a bad value.
    """
    env = dict(os.environ if environ is None else environ)
    path = _find_config(config_file, env)
    base = path.parent if path else Path.cwd()
    layers: list[tuple[dict[str, Any], Mapping[str, str]]] = []
    if path:
        layers.append(_yaml_layer(path))
    dotenv = base / ".env"
    if dotenv.is_file():
        layers.append(_dotenv_layer(dotenv))
    layers.append(_environ_layer(env))

    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for values, places in layers:
        _merge(merged, values)
        sources.update(places)
    defaults = Settings()
    try:
        settings = Settings.model_validate(_over_defaults(defaults, merged))
    except ValidationError as error:
        raise SettingsError(_explain(error, sources, path)) from None
    return LoadedSettings(_absolute(settings, base), _spread(sources, settings), path)


def _find_config(config_file: Path | None, env: Mapping[str, str]) -> Path | None:
    named = config_file or (Path(env[ENV_CONFIG_FILE]) if env.get(ENV_CONFIG_FILE) else None)
    if named is None:
        default = Path("config.yaml")
        return default.resolve() if default.is_file() else None
    if not named.is_file():
        absolute = named.absolute().as_posix()
        command = next((how for file, how in _CREATED_BY.items() if absolute.endswith(f"/{file}")), "")
        raise SettingsError(f"{named}: no such configuration file{command and f'; `{command}` creates it'}")
    return named.resolve()


def _yaml_layer(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise SettingsError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}, {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}:1: expected sections (key: value), found {type(values).__name__}")
    places: dict[str, str] = {}
    _mark_lines(root, "", path, places)
    return values, places


def _mark_lines(node: yaml.Node | None, prefix: str, path: Path, places: dict[str, str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key_node, value_node in node.value:
        name = str(key_node.value)
        line = key_node.start_mark.line + 1
        if name in seen:
            raise SettingsError(f"{path}:{line}: {prefix}{name}: set twice")
        seen.add(name)
        places[prefix + name] = f"{path}:{line}"
        _mark_lines(value_node, f"{prefix}{name}.", path, places)


def _environ_layer(env: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    names = {name.upper(): name for name in env if name.upper().startswith(ENV_PREFIX)}
    _refuse_unknown(names, "environment")
    source = EnvSettingsSource(_Layers)
    source.env_vars = {name.lower(): value for name, value in env.items()}
    return _read(source, "environment"), {
        _dotted(upper): f"environment {name}" for upper, name in names.items()
    }


def _dotenv_layer(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    source = DotEnvSettingsSource(_Layers, env_file=path, env_file_encoding="utf-8")
    names = {name.upper(): name for name in source.env_vars if name.upper().startswith(ENV_PREFIX)}
    _refuse_unknown(names, str(path))
    source.env_vars = {name: value for name, value in source.env_vars.items() if name.upper() in names}
    return _read(source, str(path)), {_dotted(upper): str(path) for upper in names}


def _read(source: EnvSettingsSource, place: str) -> dict[str, Any]:
    """Let pydantic-settings explode the flat names; a bad list or mapping is named by its variable."""
    for name, value in source.env_vars.items():
        if value and name.upper().startswith(ENV_PREFIX) and _is_complex(_dotted(name.upper())):
            try:
                json.loads(value)
            except ValueError:
                got = "" if _is_secret(_dotted(name.upper()).split(".")) else f", got {value!r}"
                raise SettingsError(
                    f'{place} {name.upper()}: not valid JSON (a list looks like ["a", "b"]){got}'
                ) from None
    return source()


def _is_complex(dotted: str) -> bool:
    model: Any = Settings
    for part in dotted.split("."):
        fields = getattr(model, "model_fields", None)
        if fields is None:
            return False
        model = fields[part].annotation
    return get_origin(model) in (tuple, dict) or hasattr(model, "model_fields")


def _refuse_unknown(names: Mapping[str, str], where: str) -> None:
    for upper in names:
        model: Any = Settings
        for part in _dotted(upper).split("."):
            fields = getattr(model, "model_fields", None)
            if fields is None:
                break  # inside a free-form mapping such as kafka.security
            if part not in fields:
                raise SettingsError(f"{where}: {upper}: {_unknown_key(_dotted(upper))}")
            model = fields[part].annotation


def _unknown_key(key: str) -> str:
    """Return the error of an unknown key, with a similar one: of the same name elsewhere, else any."""
    known = list(_keys(Settings))
    same_name = [one for one in known if one.rpartition(".")[2] == key.rpartition(".")[2]]
    only = len(same_name) == 1
    hint = f" Did you mean '{same_name[0]}'?" if only else did_you_mean(key, same_name or known)
    return f"unknown key '{key}'{'.' if hint else ''}{hint}"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted key of every section and setting."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")


def _dotted(env_name: str) -> str:
    return env_name[len(ENV_PREFIX) :].lower().replace("__", ".")


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _over_defaults(model: BaseModel, values: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a partly given section with the defaults of its parent, so one key can be overridden alone."""
    result = dict(values)
    for name in type(model).model_fields:
        default = getattr(model, name)
        if not isinstance(default, BaseModel):
            continue
        if name not in values:
            result[name] = default
        elif isinstance(values[name], Mapping):
            own = _over_defaults(default, values[name])
            result[name] = {**{n: getattr(default, n) for n in type(default).model_fields}, **own}
    return result


def _explain(error: ValidationError, sources: Mapping[str, str], path: Path | None) -> str:
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    key = ".".join(parts)
    place = next(
        (sources[".".join(parts[:n])] for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in sources),
        str(path or "environment"),
    )
    if first["type"] == "extra_forbidden":
        return f"{place}: {_unknown_key(key)}"
    message = first["msg"].removeprefix("Value error, ")
    if not parts:
        # Of several sections at once: the message names the keys, and the input is the whole configuration.
        return f"{sources.get(message.split()[0], path or 'environment')}: {message}"
    hint = ""
    if first["type"] == "literal_error":
        hint = did_you_mean(str(first["input"]), re.findall(r"'([^']*)'", first["msg"]))
    more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
    # Of several keys at once the message says enough, and one of them may be a secret.
    whole = first["input"] if isinstance(first["input"], (list, tuple)) else [first["input"]]
    hidden = _is_secret(parts) or any(isinstance(one, (Mapping, BaseModel)) for one in whole)
    got = "" if hidden else f", got {first['input']!r}"
    return f"{place}: {key}: {message}{got}{more}{'.' if hint else ''}{hint}"


def _is_secret(parts: list[str]) -> bool:
    """Return whether the value of a key is a secret, or may contain one."""
    model: Any = Settings
    for part in parts:
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            break
        model = fields[part].annotation
    return "SecretStr" in str(model)


def _absolute(settings: Settings, base: Path) -> Settings:
    storage = settings.storage
    paths = {
        name: (base / getattr(storage, name)).resolve()
        for name in ("data_dir", "reports_dir", "artifacts_dir")
    }
    return settings.model_copy(update={"storage": storage.model_copy(update=paths)})


def _leaves(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _display(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_display(v)}" for k, v in value.items()) + "}"
    if isinstance(value, SecretStr):
        return "**********"
    if isinstance(value, tuple):
        return "[" + ", ".join(str(v) for v in value) + "]"
    return "" if value is None else str(value)


def _spread(sources: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """Return for every leaf the most specific place that set it."""
    spread: dict[str, str] = {}
    for key, _ in _leaves(settings):
        parts = key.split(".")
        for n in range(len(parts), 0, -1):
            place = sources.get(".".join(parts[:n]))
            if place:
                # A section's own line says nothing about a leaf that the section leaves to its default.
                if n == len(parts):
                    spread[key] = place
                break
    for key, place in sources.items():
        parent = key.rpartition(".")[0]
        if parent in {leaf for leaf, _ in _leaves(settings)}:
            spread[parent] = place
    return spread
