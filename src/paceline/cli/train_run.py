"""`paceline train run`: the command line of paceline.train.loop."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import closing, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import click

from paceline.cli.help import examples
from paceline.errors import ConfigError
from paceline.train.architectures import names
from paceline.train.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

_SETTINGS = (
    ("arch", "NAME[:OPT=VAL,...]", f"Architecture: {', '.join(names())}."),
    ("start_from", "FOLDER", "Go on from this drafter's weights, with its tokens. [default: fresh ones]"),
    ("epochs", "N", "Times that each answer is seen."),
    ("batch_tokens", "N", "Tokens of one pass; fewer take less memory."),
    ("accumulate", "N", "Passes whose gradients make one step."),
    ("max_length", "N", "Cut answers with their prompts to so many tokens."),
    ("learning_rate", "RATE", "At its highest."),
    ("warmup", "SHARE", "Share of all steps in which it rises; then it falls as a cosine."),
    ("weight_decay", "RATE", "Of matrices."),
    ("clip", "NORM", "Largest norm of the gradient."),
    ("loss", "NAME", "Distance from the target's law: kl (forward), jsd, or tv (total variation)."),
    ("depth_decay", "FACTOR", "Weight of each depth's loss compared with that of the depth before."),
    ("ema", "SHARE", "Of the average of all parameters, which is what is kept, that a step leaves as it is."),
    ("dtype", "NAME", "bfloat16 (of products; parameters are float32) or float32."),
    ("held_out", "SHARE", "Of the answers, to measure with; 0 measures with those it is trained on."),
    ("held_out_most", "N", "Answers to measure with at most."),
    ("log_every", "N", "Steps between lines of the log."),
    ("measure_every", "N", "Steps between measurements."),
    ("checkpoint_every", "N", "Steps between checkpoints."),
    ("seed", "N", "Of fresh weights and of the order of the answers."),
)


def _settings_options(function: F) -> F:
    """The fields of Settings as options."""
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    for name, metavar, text in reversed(_SETTINGS):
        function = click.option(
            f"--{name.replace('_', '-')}",
            name,
            type=type(defaults[name]),
            default=defaults[name],
            metavar=metavar,
            show_default=defaults[name] != "",
            help=text,
        )(function)
    return function


@click.command(
    epilog=examples(
        "paceline train run answers/ --out drafter/",
        "paceline train run answers/ --out drafter/ --arch eagle3:depths=7 --epochs 10 --device cuda",
        "paceline train run answers/ own/ --out tuned/ --arch draft --start-from drafter/",
        "paceline train run mine/ --out tuned/ --start-from drafter/ --learning-rate 3e-4",
    )
)
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="Where the drafter goes."
)
@_settings_options
@click.option("--device", default="cpu", show_default=True, help="Of PyTorch, such as cpu or cuda.")
@click.option("--threads", type=int, help="Threads on the CPU. [default: PyTorch's own choice]")
@click.option("--license", default="", metavar="NAME", help="Of the drafter, for its card.")
@click.option(
    "--tensorboard", is_flag=True, help="Also write curves for TensorBoard into the drafter's folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print the drafter's card as JSON.")
def command(
    data: tuple[Path, ...],
    out: Path,
    device: str,
    threads: int | None,
    license: str,
    tensorboard: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a drafter on DATA, one or more data sets that `paceline train data` made.

    The same command goes on where it was interrupted. Behind `accelerate launch
    --multi_gpu --num_processes N -m` it runs on N GPUs, which share a step's passes.
    """  # fmt: skip
    chosen = Settings(**settings)
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}")
    if find_spec("torch") is None or find_spec("safetensors") is None:
        raise ConfigError("training needs PyTorch: pip install 'paceline[train]'")
    from paceline.bench.progress import progress_bar
    from paceline.train.curves import Curves
    from paceline.train.loop import Run

    run = Run(data[0], out, chosen, also=data[1:], device=device, threads=threads)
    first = run.processes.first
    curves = closing(Curves(out, run.progress.step)) if tensorboard and first else nullcontext()
    with curves as drawn, progress_bar(shown=first) as progress:
        task = progress.add_task("Training", total=run.plan.total, completed=run.progress.step)

        def advance(step: int, log: dict[str, Any]) -> None:
            loss = f", loss {log['loss'][0]:.3f}" if log else ""
            progress.update(task, completed=step, description=f"Training{loss}")

        card = run.train(advance, license=license, watch=drawn.add if drawn else None)
    if not first:
        return
    if as_json:
        click.echo(json.dumps(card))
        return
    best = card["estimate"]
    click.echo(f"{out}: {card['parameters']:,} parameters, {card['bytes']:,} bytes, {card['steps']} steps")
    click.echo(
        f"estimated τ over held-out answers: {best['tau_greedy']} greedy, {best['tau_sampled']} sampled"
    )
