"""`paceline chat`: turns, commands, a bounded history, and Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from paceline.engine import Engine

Paceline = Callable[..., Any]
CHAT = ("chat", "--drafter", "ngram", "--max-tokens", "20", "--seed", "1")


def prompts(engines: list[Engine], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text of every prompt that is submitted, control tokens left out."""
    seen: list[str] = []
    original = Engine.submit

    def submit(self: Any, prompt: Any, params: Any) -> int:
        seen.append(self.tokenizer.decode(prompt))
        return original(self, prompt, params)

    monkeypatch.setattr(Engine, "submit", submit)
    return seen


def test_later_turns_know_the_earlier_ones_until_a_reset(
    paceline: Paceline, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = prompts(engines, monkeypatch)
    outcome = paceline(*CHAT, "--system", "be brief", stdin="one\n\ntwo\n/reset\nthree\n/exit\nfour\n")
    assert outcome.code == 0
    first, second, third = seen
    answer = outcome.out.splitlines()[0]
    assert first == "system\nbe brief\nuser\none\nassistant\n"
    assert second.startswith(first + answer)
    assert second.endswith("user\ntwo\nassistant\n")
    assert third == "system\nbe brief\nuser\nthree\nassistant\n"


def test_commands_are_answered_on_stderr(paceline: Paceline, engines: list[Engine]) -> None:
    outcome = paceline(*CHAT, stdin="/stats\n/help\n/dance\nhello\n/stats\n")
    assert "no answer yet" in outcome.err
    assert outcome.err.count("/exit (or Ctrl-D) ends") == 3
    assert "there is no /dance" in outcome.err
    assert "τ " in outcome.err
    assert "τ" not in outcome.out


def test_the_oldest_turns_are_dropped_when_the_context_is_full(
    paceline: Paceline, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = prompts(engines, monkeypatch)
    turns = [f"turn {letter * 20}" for letter in "abcdef"]
    outcome = paceline(*CHAT, "--context", "200", stdin="\n".join(turns))
    assert outcome.code == 0
    assert "the context is full: the oldest 1 of the turns are dropped" in outcome.err
    assert len(seen) == 6
    assert "turn aaaa" not in seen[-1]
    assert seen[-1].endswith(f"user\n{turns[-1]}\nassistant\n")


def test_a_turn_that_is_too_long_is_refused_and_the_conversation_goes_on(
    paceline: Paceline, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = prompts(engines, monkeypatch)
    outcome = paceline(*CHAT, "--context", "150", stdin="one\n" + "x" * 300 + "\ntwo\n")
    assert outcome.code == 0
    assert "error: " in outcome.err
    assert "user\none\n" in seen[-1]
    assert "xxx" not in seen[-1]


def test_ctrl_c_stops_the_answer_and_not_the_program(
    paceline: Paceline, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = prompts(engines, monkeypatch)
    original, steps = Engine.step, [0]

    def step(self: Engine) -> Any:
        steps[0] += 1
        if steps[0] == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self)

    monkeypatch.setattr(Engine, "step", step)
    before = signal.getsignal(signal.SIGINT)
    outcome = paceline(*CHAT, "--max-tokens", "200", "--ignore-eos", stdin="one\ntwo\n")
    assert outcome.code == 0
    assert "stopped" in outcome.err
    assert len(seen) == 2
    short, long = outcome.out.split("\n")[0], seen[1]
    assert f"assistant\n{short}" in long
    assert signal.getsignal(signal.SIGINT) is before


def test_a_model_without_chat_format_is_refused(paceline: Paceline, engines: list[Engine]) -> None:
    outcome = paceline(*CHAT, "--model", "no-template", stdin="hello\n")
    assert outcome.code == 2
    assert outcome.err == "paceline: error: no-template has no chat format; use `paceline generate --raw`\n"


def test_a_turn_that_had_to_be_given_up_says_why(paceline: Paceline, engines: list[Engine]) -> None:
    outcome = paceline("chat", "--drafter", "none", "--regex", "yes", "--bad-word", "es", stdin="hello\n")
    assert outcome.code == 0
    assert outcome.out == "ye\n"
    assert "the answer is incomplete: the controls together leave no token" in outcome.err
