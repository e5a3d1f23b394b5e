"""What the code must not hold, and rules that need no running server."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from paceline.errors import ConfigError
from paceline.serve import settings
from paceline.serve.failures import ApiError
from paceline.serve.guard import Guard

ROOT = Path(__file__).parents[2]
NEVER = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
"""Modules that run, or may run, what a file or another process says; in the package, multiprocessing too,
which pickles."""
FETCHING = {"urllib", "http", "httpx", "httpx2", "requests", "aiohttp", "ftplib", "socket"}
CALLS = {"eval", "exec", "compile", "__import__"}


def found_in(source: str) -> set[str]:
    """Modules imported and functions called by name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.add(node.func.id)
    return found


@pytest.mark.parametrize("folder", ["src", "benchmarks", "docs"])
def test_nothing_is_unpickled_or_evaluated(folder: str) -> None:
    never = NEVER | CALLS | ({"multiprocessing"} if folder == "src" else set())
    for file in (ROOT / folder).rglob("*.py"):
        assert not found_in(file.read_text(encoding="utf-8")) & never, file


def test_no_arrays_are_loaded_that_may_hold_objects() -> None:
    for file in (ROOT / "src").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "allow_pickle=True" not in text, file
        assert "torch.load(" not in text, file


def test_the_server_fetches_nothing() -> None:
    may_open_sockets = {"backend.py", "program.py", "worker.py"}
    for file in (ROOT / "src" / "paceline" / "serve").rglob("*.py"):
        allowed = {"socket"} if file.name in may_open_sockets else set()
        assert found_in(file.read_text(encoding="utf-8")) & FETCHING <= allowed, file


def test_planted_dangers_would_be_found() -> None:
    assert found_in("import pickle\nfrom urllib.request import urlopen\nx = eval('1')") == {
        *("pickle", "urllib", "eval")
    }


def test_keys_come_from_a_private_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst-long-key\n\n second-long-key \n")
    file.chmod(0o600)
    assert settings.keys_of(file, "third-long-key, fourth-long-key") == [
        *("third-long-key", "fourth-long-key", "first-long-key", "second-long-key")
    ]
    assert settings.keys_of(None, None) == []
    for text, mode, words in (
        ("a-long-enough-key", 0o640, "others can read"),
        ("# none\n", 0o600, "holds no key"),
        ("short\n", 0o600, "at least 8 characters"),
    ):
        file.write_text(text)
        file.chmod(mode)
        with pytest.raises(ConfigError, match=words):
            settings.keys_of(file, None)
    with pytest.raises(ConfigError, match="No such file"):
        settings.keys_of(tmp_path / "none", None)


def test_all_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((first, second))
        return first == second

    monkeypatch.setattr("paceline.serve.guard.hmac.compare_digest", compare)
    guard = Guard(None, ["first-long-key", "second-long-key"])  # type: ignore[arg-type]
    names = {guard.owner([(b"authorization", b"Bearer " + key)]) for key in (b"first-long-key", b"x", b"")}
    assert len(compared) == 6
    assert {len(one) for pair in compared for one in pair} == {32}
    assert len(names) == 2
    assert None in names


def test_errors_say_whether_to_try_again() -> None:
    from paceline.serve import failures

    for error in (failures.queue_full(9, 3), failures.shutting_down(), failures.unavailable("x", "y")):
        assert error.status in (429, 503)
        assert int(error.headers["Retry-After"]) >= 1
    for error in (failures.refused("x", "n"), failures.invalid_json("x"), failures.unauthenticated()):
        assert 400 <= error.status < 500
        assert error.status not in (408, 409, 429)  # which clients repeat
    assert failures.internal("x").headers == {"x-should-retry": "false"}
    assert isinstance(failures.too_large("x"), ApiError)


def test_sizes() -> None:
    assert settings.size("x", "1.5 GiB") == 3 << 29
    assert settings.size("x", "600MB") == 600 << 20
    assert settings.size("x", 77) == 77
    for wrong in ("", "GiB", "-1", "1 PB", 1.5, -1, True, None):
        with pytest.raises(ConfigError, match="x must be a size"):
            settings.size("x", wrong)
