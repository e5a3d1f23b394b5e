"""`paceline generate` from the outside: what goes where, and what a mistake looks like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paceline.engine import Engine

Paceline = Callable[..., Any]
ASK = ("generate", "--drafter", "ngram", "--max-tokens", "20", "--seed", "1")


def one_line_error(outcome: Any) -> str:
    """The message of a user's mistake: exit code 2, nothing on stdout, one line on stderr."""
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("paceline: error: ")
    assert outcome.err.count("\n") == 1
    return str(outcome.err)


def test_the_answer_alone_goes_to_stdout(paceline: Paceline, engines: list[Engine]) -> None:
    outcome = paceline(*ASK, "hello")
    assert outcome.code == 0
    assert outcome.out.endswith("\n")
    assert outcome.err == ""
    assert paceline(*ASK, "hello").out == outcome.out


def test_argument_file_and_stdin_give_the_same_answer(
    paceline: Paceline, engines: list[Engine], tmp_path: Path
) -> None:
    (tmp_path / "prompt.txt").write_text("hello there")
    expected = paceline(*ASK, "hello there").out
    assert paceline(*ASK, "--prompt-file", str(tmp_path / "prompt.txt")).out == expected
    assert paceline(*ASK, stdin="hello there").out == expected
    assert paceline(*ASK, "--prompt-file", "-", stdin="hello there").out == expected


def test_a_streamed_answer_is_the_same_text(paceline: Paceline, engines: list[Engine]) -> None:
    assert paceline(*ASK, "--stream", "hello").out == paceline(*ASK, "--no-stream", "hello").out


def test_json_is_one_object_with_the_figures(paceline: Paceline, engines: list[Engine]) -> None:
    outcome = paceline(*ASK, "--json", "hello")
    record = json.loads(outcome.out)
    assert record["text"] == paceline(*ASK, "hello").out[:-1]
    assert record["seed"] == 1
    assert record["drafter"] == "ngram"
    assert record["stats"]["tokens"] == len(record["token_ids"])
    assert record["stats"]["tau"] >= 1
    assert set(record["timings"]) >= {"prefill_s", "decode_s", "tokens_per_second"}


def test_stats_go_to_stderr(paceline: Paceline, engines: list[Engine]) -> None:
    outcome = paceline(*ASK, "--stats", "hello")
    assert "τ " in outcome.err
    assert "seed 1" in outcome.err
    assert "τ" not in outcome.out


def test_the_drafter_does_not_change_the_answer(paceline: Paceline, engines: list[Engine]) -> None:
    assert paceline(*ASK, "--drafter", "none", "hello").out == paceline(*ASK, "hello").out


def test_raw_and_chat_prompts_differ_and_a_system_message_counts(
    paceline: Paceline, engines: list[Engine]
) -> None:
    def prompt_tokens(*more: str) -> int:
        return int(json.loads(paceline(*ASK, "--json", *more, "hello").out)["prompt_tokens"])

    assert prompt_tokens("--raw") == 5
    assert prompt_tokens() == prompt_tokens("--chat") > 5
    assert prompt_tokens("--system", "be brief") > prompt_tokens()


def test_every_sampling_option_reaches_the_engine(
    paceline: Paceline, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    original = Engine.generate
    monkeypatch.setattr(
        Engine,
        "generate",
        lambda self, prompts, params, *more, **named: (
            seen.append(params) or original(self, prompts, params, *more, **named)
        ),
    )
    paceline(
        "generate", "--drafter", "none", "--temperature", "0.5", "--top-k", "7", "--top-p", "0.9",
        "--min-p", "0.1", "--repetition-penalty", "1.1", "--presence-penalty", "0.2",
        "--frequency-penalty", "0.3", "--min-tokens", "2", "--max-tokens", "9", "--seed", "3",
        "--logit-bias", "4=-5", "--logit-bias", "6=1.5", "--stop", "a", "--stop", "b",
        "--bad-word", "no", "--bad-word", "not yet", "--stop-token-id", "8", "--ignore-eos", "hello",
    )  # fmt: skip
    (params,) = seen
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.5, 7, 0.9, 0.1)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.1, 0.2, 0.3)
    assert (params.min_tokens, params.max_tokens, params.seed) == (2, 9, 3)
    assert params.logit_bias == {4: -5.0, 6: 1.5}
    assert (params.stop, params.stop_token_ids, params.ignore_eos) == (("a", "b"), (8,), True)
    assert params.bad_words == ("no", "not yet")
    assert (params.grammar, params.logprobs) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperature", "2.1", "x"], "temperature must be a number"),
        (["--temperature", "nan", "x"], "temperature"),
        (["--top-p", "0", "x"], "top_p"),
        (["--max-tokens", "0", "x"], "max_tokens"),
        (["--max-tokens", "many", "x"], "'many' is not a valid integer"),
        (["--seed", "-1", "x"], "seed"),
        (["--logit-bias", "x", "x"], "--logit-bias: found 'x', expected ID=NUMBER"),
        (["--logit-bias", "9999=1", "x"], "9999"),
        (["--stop", "", "x"], "stop"),
        (["--threads", "0", "x"], "threads is 0"),
        (["--drafter", "psychic", "x"], "no drafter 'psychic'"),
        (["--drafter", "ngram:speed=9", "x"], "no option 'speed'"),
        (["--model", "gpt-5", "x"], "there is no model 'gpt-5'; known are: smollm2-135m, gemma3-270m; or"),
        (["--nonsense", "x"], "--nonsense"),
        (["one", "two"], "unexpected extra argument"),
        (["--prompt-file", "absent.txt"], "prompt file absent.txt: No such file"),
        (["--prompt-file", "absent.txt", "x"], "not both"),
        (["--stream", "--json", "x"], "exclude each other"),
        (["--stream", "--n", "2", "x"], "--stream and --n exclude each other"),
        (["--n", "0", "x"], "n must be a whole number, 1 to 128; got 0"),
        (["--n", "many", "x"], "'many' is not a valid integer"),
        (["--logprobs", "3", "x"], "--logprobs needs --json"),
        (["--logprobs", "21", "--json", "x"], "logprobs must be a whole number, 0 to 20, or None; got 21"),
        (["--bad-word", "", "x"], "a word in bad_words has 1 to 1000"),
        (["--regex", "a[", "x"], "the regular expression cannot be used: unclosed"),
        (["--json-schema", "[1]", "x"], "JSON schema [1]: No such file"),
        (["--json-schema", "{", "x"], "the JSON schema is not JSON"),
        (["--json-schema", '{"type": 1}', "x"], "type must be a string"),
        (["--json-schema", "absent.json", "x"], "JSON schema absent.json: No such file"),
        (["--grammar", "absent.lark", "x"], "grammar absent.lark: No such file"),
        (["--json-object", "--regex", "a", "x"], "--json-object and --regex exclude each other"),
        (["--json-object", "x"], "no token of this model begins such a text"),
        (["--regex", "a", "--ignore-eos", "x"], "ignore_eos must be False with a grammar"),
        (["--regex", "a", "--min-tokens", "2", "x"], "min_tokens must be 0 with a grammar"),
        (["--raw", "--system", "be brief", "x"], "--system needs the chat format"),
        (["--model", "no-template", "--chat", "x"], "no chat template"),
        ([], "the prompt is empty"),
        (["  \n"], "the prompt is empty"),
        (["--context", "32", "a long prompt " * 5], "this model takes 1 to 31"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    paceline: Paceline, engines: list[Engine], arguments: list[str], words: str
) -> None:
    assert words.lower() in one_line_error(paceline("generate", "--drafter", "none", *arguments)).lower()


def test_several_answers_are_separated_or_one_json_object_per_line(
    paceline: Paceline, engines: list[Engine]
) -> None:
    answers = [json.loads(line) for line in paceline(*ASK, "--json", "--n", "3", "hello").out.splitlines()]
    assert [answer["index"] for answer in answers] == [0, 1, 2]
    assert answers[0]["seed"] == 1
    assert len({answer["text"] for answer in answers}) > 1
    outcome = paceline(*ASK, "--n", "3", "--stats", "hello")
    assert outcome.out == "\n---\n".join(answer["text"] for answer in answers) + "\n"
    assert outcome.err.count("τ") == 3


def test_logprobs_are_in_the_json(paceline: Paceline, engines: list[Engine]) -> None:
    record = json.loads(paceline(*ASK, "--json", "--logprobs", "2", "hello").out)
    assert [entry["token_id"] for entry in record["logprobs"]] == record["token_ids"]
    assert all(len(entry["top"]) == 2 and entry["logprob"] < 0 for entry in record["logprobs"])
    assert set(record["logprobs"][0]["top"][0]) == {"token_id", "logprob"}
    assert json.loads(paceline(*ASK, "--json", "hello").out)["logprobs"] is None


def test_an_answer_keeps_to_a_regex_a_schema_or_a_grammar(
    paceline: Paceline, engines: list[Engine], tmp_path: Path
) -> None:
    assert paceline(*ASK, "--regex", "(yes|no)[.]", "hello").out in ("yes.\n", "no.\n")
    (tmp_path / "grammar.lark").write_text('start: "so" end\nend: "it is"')
    assert paceline(*ASK, "--grammar", str(tmp_path / "grammar.lark"), "hello").out == "soit is\n"
    assert paceline(*ASK, "--grammar", "-", "hello", stdin='start: "a"').out == "a\n"
    (tmp_path / "schema.json").write_text('{"const": null}')
    for schema in (str(tmp_path / "schema.json"), '{"const": null}'):
        assert paceline(*ASK, "--json-schema", schema, "hello").out == "null\n"


def test_an_answer_that_had_to_be_given_up_says_why(paceline: Paceline, engines: list[Engine]) -> None:
    outcome = paceline(*ASK, "--regex", "yes", "--bad-word", "es", "hello")
    assert outcome.code == 0
    assert outcome.out == "ye\n"
    assert outcome.err.startswith("The answer is incomplete: the controls together leave no token")


def test_without_a_prompt_on_a_terminal_the_help_is_named(paceline: Paceline, engines: list[Engine]) -> None:
    assert "paceline generate --help" in one_line_error(paceline("generate", terminal=True))


def test_input_that_is_not_text_is_refused(paceline: Paceline, engines: list[Engine], tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"ab\xff")
    assert "not UTF-8" in one_line_error(paceline(*ASK, "--prompt-file", str(tmp_path / "noise")))
    assert "not UTF-8" in one_line_error(paceline(*ASK, stdin=b"ab\xff"))


def test_a_model_without_chat_format_takes_raw_text_by_itself(
    paceline: Paceline, engines: list[Engine]
) -> None:
    outcome = paceline(*ASK, "--model", "no-template", "--json", "hello")
    assert json.loads(outcome.out)["prompt_tokens"] == 5


def test_ctrl_c_ends_with_130_and_no_traceback(
    paceline: Paceline, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "step", interrupted)
    outcome = paceline(*ASK, "hello")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.gguf", None, "no such file"),
        ("empty.gguf", b"", "holds 0 bytes"),
        ("text.gguf", b"this is a text file, not a model", "expected b'GGUF'"),
    ],
)
def test_a_bad_model_file_is_one_line_and_leaves_the_cache_empty(
    paceline: Paceline, tmp_path: Path, own_cache: Path, name: str, content: bytes | None, words: str
) -> None:
    pytest.importorskip("paceline.targets.native")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = one_line_error(paceline(*ASK, "--model", str(tmp_path / name), "hello"))
    assert words in message
    assert str(tmp_path / name) in message
    assert not own_cache.exists() or not [path for path in own_cache.rglob("*") if path.is_file()]


def test_a_prediction_is_drafted_from_and_changes_nothing(
    paceline: Paceline, engines: list[Engine], tmp_path: Path
) -> None:
    plain = paceline("generate", "--drafter", "none", "--seed", "1", "--max-tokens", "60", "hello").out
    file = tmp_path / "answer.txt"
    file.write_text(plain[:-1])
    ask = ("generate", "--prediction", str(file), "--json", "--seed", "1", "--max-tokens", "60", "hello")
    record = json.loads(paceline(*ask).out)
    assert record["text"] == plain[:-1]
    assert record["drafter"] == "prediction"
    assert record["stats"]["tau"] > 2
    named = json.loads(paceline(*ask, "--drafter", "prediction:max_nodes=2").out)
    assert (named["text"], named["drafter"]) == (record["text"], "prediction:max_nodes=2")


def test_a_prediction_that_cannot_be_used_is_refused(
    paceline: Paceline, engines: list[Engine], tmp_path: Path
) -> None:
    missing = ("generate", "--prediction", str(tmp_path / "no"), "hello")
    assert "prediction" in one_line_error(paceline(*missing))
    other = one_line_error(paceline(*missing, "--drafter", "suffix"))
    assert "--prediction is for --drafter prediction, got suffix" in other
