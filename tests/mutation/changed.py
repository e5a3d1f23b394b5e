"""Running tests on a changed copy of the package, without touching a file.

A process of its own imports the changed sources in place of the modules. It is forked from one that has
loaded the libraries already, so that a run costs little more than its tests; that one must never import
Paceline itself.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import hypothesis  # noqa: F401
import numpy  # noqa: F401
import pytest
import scipy.stats  # noqa: F401

ROOT = Path(__file__).parents[2]
SECONDS = 400
"""Processor time that a run may take unless its job says otherwise: an endless loop is noticed, too."""

Sources = Mapping[str, str]
"""{module: its source in this copy}; other modules are as they are."""


def path_of(module: str) -> Path:
    """The file of a module or package."""
    path = ROOT / "src" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


class Run(NamedTuple):
    """How one run on a copy ended.

    code: the exit code, or None if it was stopped. output: what it wrote. seconds: processor time it took.
    """

    name: str
    code: int | None
    output: str
    seconds: float


class Job(NamedTuple):
    """Something to run on a copy. work: gives the exit code. seconds: processor time it may take."""

    name: str
    sources: Sources
    work: Callable[[], int]
    seconds: int = SECONDS


def run(jobs: Iterable[Job]) -> Iterator[Run]:
    """Run the jobs, one per core at a time; their ends, as they come."""
    running: dict[int, tuple[str, Path]] = {}
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        for number, job in enumerate(jobs):
            output = Path(folder, str(number))
            running[_start(job, output)] = (job.name, output)
            while len(running) >= cores:
                yield _wait(running)
        while running:
            yield _wait(running)


def pytest_on(tests: Sequence[str]) -> Callable[[], int]:
    """Run these tests up to the first that fails."""
    # The modules loaded before the fork can no longer be rewritten, and plain assertions are faster.
    options = ["-x", "-q", "-rf", "-p", "no:cacheprovider", "--assert=plain", "--tb=no", "--no-header"]
    return lambda: int(pytest.main([*options, *tests]))


def _start(job: Job, output: Path) -> int:
    child = os.fork()
    if child:
        return child
    resource.setrlimit(resource.RLIMIT_CPU, (job.seconds, job.seconds + 5))
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.meta_path.insert(0, _Changed(job.sources))
    code = 3  # for an exception, which says nothing about the copy
    try:
        code = job.work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(running: dict[int, tuple[str, Path]]) -> Run:
    child, status, used = os.wait3(0)
    name, output = running.pop(child)
    code = None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    text = output.read_text(encoding="utf-8", errors="replace")
    return Run(name, code, text, used.ru_utime + used.ru_stime)


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives out the changed sources when their modules are imported."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> object:
        if fullname not in self._sources:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=str(path_of(fullname)))
        spec.has_location = True
        if path_of(fullname).name == "__init__.py":
            spec.submodule_search_locations = [str(path_of(fullname).parent)]
        return spec

    def create_module(self, spec: object) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._sources[module.__name__], str(path_of(module.__name__)), "exec"), vars(module))
