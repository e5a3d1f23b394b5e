"""What `paceline tune` chose for a model on this machine: one TOML file each, in the cache folder."""

from __future__ import annotations

import hashlib
import json
import platform
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from paceline.bench.machine import usable_cores
from paceline.errors import ConfigError
from paceline.models.cache import cache_dir, write_atomically
from paceline.models.registry import find


@dataclass(frozen=True, slots=True)
class Profile:
    """A choice and why it was made.

    model, threads   what it holds for, on this machine
    drafter, policy  as users type them
    why              the reason, a sentence
    date             when, ISO 8601
    """

    model: str
    threads: int
    drafter: str
    policy: str
    why: str
    date: str


def path_of(model: str, threads: int | None) -> Path:
    """Where the profile of a model lies, if there is one. threads: None for one per core."""
    name, count = _key(model, threads)
    key = "\0".join((platform.node(), platform.machine(), name, str(count)))
    return cache_dir() / "tuned" / f"{Path(name).stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.toml"


def _key(model: str, threads: int | None) -> tuple[str, int]:
    known = find(model)
    return known.name if known else str(Path(model).expanduser().absolute()), threads or usable_cores()


def write(profile: Profile) -> Path:
    """Keep a profile, in place of an earlier one; where it is now. Raises ConfigError."""
    path = path_of(profile.model, profile.threads)
    # What JSON makes of texts and whole numbers is TOML as well.
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in asdict(profile).items()]
    try:
        with write_atomically(path) as file:
            file.write(
                "".join(("# Written by `paceline tune`. Delete it to undo the choice.\n", *lines)).encode()
            )
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def read(model: str, threads: int | None) -> Profile | None:
    """The profile of a model, None if there is none. Raises ConfigError for a file that is not one."""
    path = path_of(model, threads)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        profile = Profile(**found)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"profile {path}: {error.strerror or error}") from None
    except (ValueError, TypeError):
        raise ConfigError(f"profile {path}: is damaged; delete it and run `paceline tune` again") from None
    if not all(
        isinstance(getattr(profile, field.name), str) or field.name == "threads" for field in fields(profile)
    ):
        raise ConfigError(f"profile {path}: is damaged; delete it and run `paceline tune` again")
    return profile
