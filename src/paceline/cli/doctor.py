"""`paceline doctor`: check that everything works on this machine."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import click

from paceline.cli.help import examples
from paceline.errors import PacelineError


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. state: "ok", "note" (works, but not as well as it could) or "broken"; fix: what to do."""

    name: str
    state: Literal["ok", "note", "broken"]
    found: str
    fix: str = ""


@click.command(
    epilog=examples("paceline doctor", "paceline doctor --json | jq '.checks[] | select(.state != \"ok\")'")
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Check Python, processor, kernels, cache and models, and run a tiny self-test.

    Fetches nothing. Exit code 1 if something is broken.
    """
    checks = []
    for check in examine():
        checks.append(check)
        if not as_json:
            mark = {"ok": "ok", "note": "note", "broken": "BROKEN"}[check.state]
            colour = {"ok": "green", "note": "yellow", "broken": "red"}[check.state]
            click.echo(f"{click.style(f'{mark:<7}', fg=colour)} {check.name:<12} {check.found}")
            if check.fix:
                click.echo(f"{'':<20} -> {check.fix}")
    broken = any(check.state == "broken" for check in checks)
    if as_json:
        click.echo(json.dumps({"ok": not broken, "checks": [asdict(check) for check in checks]}))
    if broken:
        click.get_current_context().exit(1)


def examine() -> Iterator[Check]:
    """All checks, cheap ones first; one that fails in an unforeseen way is itself a finding."""
    checks: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("python", _python),
        ("packages", _packages),
        ("processor", _processor),
        ("kernels", _kernels),
        ("cache", _cache),
        ("pip", _pip),
        ("architectures", _architectures),
        ("models", _models),
        ("self-test", _self_test),
    )
    for name, check in checks:
        try:
            yield check()
        except PacelineError as error:
            yield Check(name, "broken", str(error))
        except Exception as error:
            yield Check(name, "broken", f"{type(error).__name__}: {error}", "please report this")


def _python() -> Check:
    found = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.platform(terse=True)}"
    )
    return Check("python", "ok", found)


def _packages() -> Check:
    from importlib.metadata import PackageNotFoundError, version

    found, missing = [], []
    for name in ("paceline", "numpy", "tokenizers", "jinja2", "click", "rich"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing == ["paceline"]:
        return Check("packages", "note", f"paceline runs from source, {', '.join(found)}")
    if missing:
        fix = "pip install " + " ".join(missing)
        return Check("packages", "broken", f"not installed: {', '.join(missing)}", fix)
    return Check("packages", "ok", ", ".join(found))


def _processor() -> Check:
    from paceline.bench.machine import processor_name, usable_cores

    found = f"{processor_name()}, {usable_cores()} of {os.cpu_count()} cores usable"
    return Check("processor", "ok", found)


def _kernels() -> Check:
    from paceline import kernels

    chosen = kernels.chosen()
    if kernels.compiled is None:
        fix = "install a C++ compiler, then in Paceline's source folder: pip install --force-reinstall ."
        return Check("kernels", "note", "not compiled: the slow NumPy reference runs instead", fix)
    forced = f", forced by {kernels.ISA_VARIABLE}" if os.environ.get(kernels.ISA_VARIABLE) else ""
    return Check("kernels", "ok", f"{chosen}{forced} (usable: {', '.join(kernels.available())})")


def _cache() -> Check:
    import shutil

    from paceline.models.cache import cache_dir, write_atomically

    folder = cache_dir()
    probe = folder / ".doctor"
    try:
        with write_atomically(probe) as file:
            file.write(b"ok")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        found = f"{folder} cannot be written: {error.strerror}"
        return Check("cache", "broken", found, "set PACELINE_CACHE to a folder that can")
    return Check("cache", "ok", f"{folder}, {free / 1e9:.1f} GB free")


def _pip() -> Check:
    import importlib.util

    if importlib.util.find_spec("pip") is None:
        fix = f"only needed to fetch models: {sys.executable} -m ensurepip"
        return Check("pip", "note", "not in this environment", fix)
    return Check("pip", "ok", "can fetch models")


def _architectures() -> Check:
    from paceline.models.config import ARCHITECTURES

    found = "; ".join(f"{name} ({family.title})" for name, family in ARCHITECTURES.items())
    return Check("runs", "ok", found)


def _models() -> Check:
    from paceline.models.pull import sha256
    from paceline.models.registry import MODELS

    present = [model for model in MODELS if model.present]
    for model in present:
        if sha256(model.path) != model.sha256:
            return Check("models", "broken", f"{model.path} is damaged", f"delete it, then pull {model.name}")
    if not present:
        return Check("models", "note", "none on this machine", f"paceline models pull {MODELS[0].name}")
    return Check("models", "ok", ", ".join(model.name for model in present) + " (hash right)")


def _self_test() -> Check:
    from paceline.engine import Engine
    from paceline.models.registry import MODELS
    from paceline.sampling import SamplingParams

    model = next((model for model in MODELS if model.present), None)
    if model is None:
        return Check("self-test", "note", "left out: no model on this machine")
    engine = Engine.from_pretrained(model.name, drafter=["ngram", "none"], context=256)
    prompt = "one two three one two three one two three"
    params = SamplingParams(temperature=0, max_tokens=24)
    plain, drafted = (engine.generate(prompt, params, drafter=name)[0] for name in ("none", "ngram"))
    if plain.token_ids != drafted.token_ids:
        fix = "please report this with the output of `paceline doctor --json`"
        return Check("self-test", "broken", "answers with and without drafter differ", fix)
    found = f"{len(plain.token_ids)} tokens the same with and without drafter, τ {drafted.stats.tau:.2f}"
    return Check("self-test", "ok", found)
