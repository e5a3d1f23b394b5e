"""`paceline demo`: one prompt answered with speculation and without, side by side."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from paceline.cli.help import examples
from paceline.cli.options import make_engine, model_option, terminal_safe, tokenizer_of

if TYPE_CHECKING:
    from paceline.bench.measure import Answer

# A summary repeats parts of its prompt, which is what this drafter is good at.
PROMPT = (
    "Summarise this notice: The town library will close for renovation on 3 May and open again in early "
    "September. During the work the roof is insulated, the old lifts are replaced and a reading room for "
    "children is built on the ground floor. Books can still be ordered online and collected from the town "
    "hall on Tuesdays and Fridays. Fines for late returns are not charged while the building is closed."
)
# Without the store of earlier answers, which would know this answer from the second round on.
DRAFTER = "auto:store_tokens=0"
PLAIN = "none"
MAX_TOKENS = 128
ROUNDS = 5


@click.command(epilog=examples("paceline demo", "paceline demo --model ./my-model.gguf --threads 1"))
@model_option
@click.option("--threads", type=int, help="Threads of a pass. [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object only.")
def command(model: str, threads: int | None, as_json: bool) -> None:
    """See it work: stream an answer with speculation, then compare its speed and text with plain decoding.

    The prompt asks for a summary, which suits speculation; for other kinds see `paceline bench speed`.
    Exit code 1 if the two outputs differ.
    """  # fmt: skip
    from paceline.bench.measure import answer, same
    from paceline.sampling import SamplingParams

    engine = make_engine(model, DRAFTER, threads, None)
    tokenizer = tokenizer_of(engine)
    if tokenizer.has_chat_template:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}])
    else:
        prompt = tokenizer.encode(PROMPT)
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    title = engine.target.info.name
    if as_json:
        answer(engine, prompt, params, DRAFTER)
    else:
        click.echo(f"{click.style('Prompt', bold=True)}\n{PROMPT}\n")
        click.echo(f"{click.style('Answer', bold=True)} of {title}, with speculation")
        answer(engine, prompt, params, DRAFTER, lambda text: click.echo(terminal_safe(text), nl=False))
        click.echo("\n")
    answer(engine, prompt, params, PLAIN)  # the streamed answer has warmed up speculation, this one plain
    rounds = [[answer(engine, prompt, params, name) for name in (PLAIN, DRAFTER)] for _ in range(ROUNDS)]
    plain, fast = [pair[0] for pair in rounds], [pair[1] for pair in rounds]
    report = {
        "model": model,
        "text": fast[0].completion.text,
        "tokens": fast[0].completion.stats.tokens,
        "plain": {"tokens_per_second": _median_speed(plain), "tau": plain[0].completion.stats.tau},
        "speculative": {"tokens_per_second": _median_speed(fast), "tau": fast[0].completion.stats.tau},
        "ratio": statistics.median(p.seconds / f.seconds for p, f in rounds),
        "identical": all(same(p.completion, f.completion) for p, f in rounds),
    }
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
    else:
        _print(report)
    if not report["identical"]:
        click.get_current_context().exit(1)


def _median_speed(answers: Sequence[Answer]) -> float:
    return statistics.median(item.completion.stats.tokens / item.seconds for item in answers)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("decoding", "tokens/s", "tokens per pass (τ)", "output"):
        table.add_column(column, justify="left" if column == "decoding" else "right")
    identical = "identical" if report["identical"] else "DIFFERENT"
    for name, output in (("plain", ""), ("speculative", identical)):
        figures = report[name]
        table.add_row(name, f"{figures['tokens_per_second']:.0f}", f"{figures['tau']:.2f}", output)
    Console(highlight=False).print(table)
    click.echo(
        f"Speculation took {1 / report['ratio']:.0%} of plain decoding's time for the same "
        f"{report['tokens']} tokens: {report['ratio']:.2f} times as fast (whole answers, medians of "
        f"{ROUNDS} rounds). Outputs identical: {'yes' if report['identical'] else 'NO'}"
    )
