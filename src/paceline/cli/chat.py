"""`paceline chat`: a conversation in the terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from paceline.cli.generate import figures
from paceline.cli.help import examples
from paceline.cli.options import (
    engine_options,
    make_engine,
    sampling_options,
    sampling_params,
    terminal_safe,
    tokenizer_of,
    typed,
)
from paceline.errors import ConfigError, PacelineError

if TYPE_CHECKING:
    from paceline.engine import Engine
    from paceline.results import Completion
    from paceline.sampling import SamplingParams

HELP = "/exit (or Ctrl-D) ends, /reset forgets the conversation, /stats shows figures; Ctrl-C stops an answer"


@click.command(
    epilog=examples(
        "paceline chat",
        'paceline chat --system "You answer in one sentence." --temperature 0.7 --top-p 0.9',
        "paceline chat --model ./my-model.gguf --drafter ngram",
        "paceline chat --json-object --bad-word sorry",
        "printf 'Hello\\nAnd in French?\\n' | paceline chat --temperature 0",
    )
)
@click.option("--system", metavar="TEXT", help="A system message before the conversation.")
@engine_options
@sampling_options
def command(
    system: str | None,
    model: str,
    drafter: str,
    policy: str,
    rule: str,
    allow_lossy: bool,
    threads: int | None,
    context: int | None,
    rows: int | None,
    **options: Any,
) -> None:
    """Talk with a model; every line you type is one turn.

    /exit or Ctrl-D ends, /reset forgets the conversation, /stats shows the last answer's figures, /help
    shows this. Ctrl-C stops the answer, not the program. When the conversation outgrows the model's
    context, the oldest turns are dropped.
    """
    params = sampling_params(options)
    engine = make_engine(model, drafter, threads, context, rule, allow_lossy, policy, rows)
    if not tokenizer_of(engine).has_chat_template:
        raise ConfigError(f"{model} has no chat format; use `paceline generate --raw`")
    conversation = Conversation(engine, params, None if system is None else typed(system))
    note(f"{engine.target.info.name}. {HELP}")
    for line in _lines():
        match line.strip():
            case "":
                continue
            case "/exit":
                break
            case "/help":
                note(HELP)
            case "/reset":
                conversation.reset()
                note("the conversation starts anew")
            case "/stats":
                note(figures(conversation.last) if conversation.last else "no answer yet")
            case text if text.startswith("/") and len(text.split()) == 1 and "/" not in text[1:]:
                note(f"there is no {text}; {HELP}")
            case _:
                try:
                    conversation.say(line)
                except PacelineError as error:
                    note(f"error: {error}")


class Conversation:
    """The turns so far, within what the context holds."""

    def __init__(self, engine: Engine, params: SamplingParams, system: str | None) -> None:
        self._engine = engine
        self._params = params
        self._system = [{"role": "system", "content": system}] if system is not None else []
        self._turns: list[dict[str, str]] = []
        self.last: Completion | None = None

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self._turns = []

    def say(self, text: str) -> None:
        """Print the answer to one turn as it grows. A turn that fails leaves the conversation as it was."""
        turns = [*self._turns, {"role": "user", "content": text}]
        prompt, dropped = self._fit(turns)
        if dropped:
            note(f"the context is full: the oldest {dropped} of the turns are dropped")
        self.last = self._answer(prompt)
        if self.last.finish_reason in ("cancelled", "error") and self.last.stop_reason is not None:
            note(f"the answer is incomplete: {self.last.stop_reason}")
        self._turns = [*turns[2 * dropped :], {"role": "assistant", "content": self.last.text}]

    def _fit(self, turns: list[dict[str, str]]) -> tuple[list[int], int]:
        """The prompt, and how many of the oldest turns (a question and its answer each) it leaves out so
        that an answer still finds room."""
        context = self._engine.target.info.max_positions
        room = context - min(self._params.max_tokens, context // 2)
        dropped = 0
        while True:
            kept = turns[2 * dropped :]
            prompt = tokenizer_of(self._engine).apply_chat_template([*self._system, *kept])
            if len(prompt) <= room or len(kept) == 1:
                return prompt, dropped
            dropped += 1

    def _answer(self, prompt: list[int]) -> Completion:
        engine = self._engine
        request = engine.submit(prompt, self._params)
        with _noticing_interrupts() as interrupted:
            try:
                while True:
                    for event in engine.step():
                        click.echo(terminal_safe(event.text), nl=False)
                        if event.finish is not None:
                            return event.finish
                    if interrupted:
                        engine.cancel(request)
            finally:
                engine.cancel(request)
                click.echo()
                if interrupted:
                    note("stopped")


@contextmanager
def _noticing_interrupts() -> Iterator[list[int]]:
    """A list that Ctrl-C fills: a step is never torn apart, the loop around it looks at the list."""
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """What the user types, line by line, until the end of input; with editing on a terminal."""
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if on_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  (gives input() a history and line editing)
    while True:
        try:
            yield input("> " if on_terminal else "")
        except EOFError:
            if on_terminal:
                click.echo()
            return
        except KeyboardInterrupt:
            click.echo(err=True)
            note("/exit or Ctrl-D ends")
        except UnicodeDecodeError:
            raise ConfigError("the input is not UTF-8 text") from None


def note(text: str) -> None:
    """A remark of the program, on stderr, dimmed where that can be shown."""
    click.secho(text, dim=True, err=True)
