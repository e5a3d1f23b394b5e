"""How a server is to be run: what the command line or a TOML file says.

memory = "6 GiB"                # of all loaded models; optional

[models.small]                  # the name that clients use
model = "smollm2-135m"          # all that `paceline serve` has options for
drafters = ["auto", "ngram"]
memory = "600 MiB"
preload = true                  # loaded at the start; otherwise when it is first asked

[models.large]
model = "/models/large.gguf"
memory = "5 GiB"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from paceline.errors import ConfigError
from paceline.serve.wire import Build

ALWAYS = ("none", "prediction")
"""Drafters that every engine has: for requests that want none, and for those with a prediction."""
MAX_WAITING = 64

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", re.IGNORECASE)
_BITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


class ModelSettings(msgspec.Struct, frozen=True):
    """How one model is served.

    max_waiting  requests that may wait beside those that run
    memory       bytes that it takes when loaded; 0: not said
    preload      whether it is loaded at the start
    """

    build: Build
    max_waiting: int = MAX_WAITING
    memory: int = 0
    preload: bool = True


def model_settings(
    *, max_waiting: int = MAX_WAITING, memory: int = 0, preload: bool = True, **build: Any
) -> ModelSettings:
    """Settings out of values that a user gave. Raises ConfigError."""
    drafters = tuple(build.get("drafters") or ("auto",))
    try:
        built = msgspec.convert(build | {"drafters": tuple(dict.fromkeys((*drafters, *ALWAYS)))}, Build)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
    for name, value, most in (("max_batch", built.max_batch, 1024), ("max_waiting", max_waiting, 100_000)):
        if not (name == "max_waiting" or value) or not 0 <= value <= most:
            raise ConfigError(f"{name} must be {int(name == 'max_batch')} to {most}, got {value}")
    return ModelSettings(built, max_waiting, memory, preload)


def read_models(path: Path) -> tuple[dict[str, ModelSettings], int | None]:
    """The models of a TOML file, by name, and the bytes they may take together. Raises ConfigError."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--models {path}: {error.strerror or error}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"{path}: {error}") from None
    memory = values.pop("memory", None)
    models = values.pop("models", None)
    if values:
        raise ConfigError(f"{path}: unknown key {next(iter(values))!r}; known are memory, models")
    if not isinstance(models, dict) or not models:
        raise ConfigError(f"{path}: there is no table [models.NAME]")
    return {
        name: _model(f"{path}: models.{name}", table) for name, table in models.items()
    }, None if memory is None else size(f"{path}: memory", memory)


def _model(where: str, table: Any) -> ModelSettings:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: expected a table")
    values = dict(table)
    known = {*Build.__struct_fields__, "max_waiting", "memory", "preload"}
    if unknown := values.keys() - known:
        raise ConfigError(f"{where}: unknown key {min(unknown)!r}; known are {', '.join(sorted(known))}")
    preload, max_waiting = values.pop("preload", False), values.pop("max_waiting", MAX_WAITING)
    if not isinstance(preload, bool):
        raise ConfigError(f"{where}.preload must be true or false, got {preload!r}")
    if type(max_waiting) is not int:
        raise ConfigError(f"{where}.max_waiting must be a whole number, got {max_waiting!r}")
    memory = size(f"{where}.memory", values.pop("memory", 0))
    try:
        return model_settings(max_waiting=max_waiting, memory=memory, preload=preload, **values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def size(what: str, value: Any) -> int:
    """Bytes, from a number or a text such as "1.5 GiB". Raises ConfigError."""
    if type(value) is int and value >= 0:
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ConfigError(f'{what} must be a size such as "1.5 GiB", got {value!r}')
    return int(float(found[1]) * (1 << _BITS[found[2].lower().rstrip("ib")]))


def keys_of(path: Path | None, environment: str | None) -> list[str]:
    """API keys: of a file, one a line, and of an environment variable, separated by commas. Raises
    ConfigError for a file that cannot be read, holds none, or that others may read."""
    keys = [key.strip() for key in (environment or "").split(",") if key.strip()]
    if path is not None:
        try:
            mode = path.stat().st_mode
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file {path}: {getattr(error, 'strerror', None) or error}") from None
        if mode & 0o077:
            raise ConfigError(f"{path}: others can read the keys; chmod 600 {path}")
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise ConfigError(f"{path}: holds no key")
        keys += found
    for key in keys:
        if len(key) < 8 or not key.isascii():
            raise ConfigError("an API key has at least 8 characters, all of ASCII")
    return keys


def served_name(model: str) -> str:
    """The name under which clients ask for a model: of a file, its name without folders and ending."""
    return Path(model).stem if model.endswith(".gguf") else model.partition(":")[0]
