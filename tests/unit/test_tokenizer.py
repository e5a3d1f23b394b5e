"""Tokenizers, detokenisation and chat templates, on tiny vocabularies built here."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.errors import ConfigError, ModelFileError
from paceline.models.chat_template import ChatTemplate
from paceline.models.gguf_file import read_gguf
from paceline.models.metadata import Metadata
from paceline.models.registry import known
from paceline.models.tokenizer import Tokenizer, byte_characters
from paceline.models.vocabulary import PRE_TOKENIZERS, read_tokenizer

CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def numbers(values: list[Any], dtype: str) -> Any:
    return np.array(values, dtype)


def byte_level(pre: str = "smollm", **more: Any) -> Tokenizer:
    merges = ["t h", "th e", "Ġ the", "i n", "Ã ©", "Ġ 1", "1 2", "Ċ Ċ", "' s"]
    tokens = [*CONTROLS, *byte_characters(), *(merge.replace(" ", "") for merge in merges), "<tool>"]
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": numbers([3] * 3 + [1] * (len(tokens) - 4) + [4], "i4"),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }
    return Tokenizer(read_tokenizer(Metadata(values | more)))


WORDS = "the then in int thin he hen nt en an and é ié _the _in _th _t _a _and __".replace(
    "_", "\u2581"
).split()
PIECES = [*dict.fromkeys([*sorted(set("".join(WORDS)) | set("bcdfgh.,")), *WORDS])]
SCORES = dict(zip(PIECES, map(float, random.Random(3).sample(range(-99, 0), len(PIECES))), strict=True))
KNOWN = {piece.replace("\u2581", " ") for piece in PIECES}


@cache
def sentencepiece(add_space_prefix: bool = True) -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *map("<0x{:02X}>".format, range(256)), *PIECES]
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": numbers([2, 3, 3] + [6] * 256 + [1] * len(PIECES), "i4"),
        "tokenizer.ggml.scores": numbers([0.0] * 259 + list(SCORES.values()), "f4"),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": add_space_prefix,
    }
    return Tokenizer(read_tokenizer(Metadata(values)))


GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set before = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set before = '' %}{% set turns = messages %}{% endif %}"
    "{% for turn in turns %}{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if turn.role == 'assistant' else turn.role }}\n"
    "{{ before if loop.first }}{{ turn.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""A chat template of Gemma's form: turns alternate, and the system's words stand in the first one."""


@cache
def gemma_like() -> Tokenizer:
    """SentencePiece without a leading space, with runs of spaces and lines as tokens of their own."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    own = ["\n", "\n\n", "  ", "   ", "<b>"]
    count = len(tokens) + 256 + len(own)
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*tokens, *map("<0x{:02X}>".format, range(256)), *own, *PIECES],
        "tokenizer.ggml.token_type": numbers([3] * 6 + [6] * 256 + [4] * len(own) + [1] * len(PIECES), "i4"),
        "tokenizer.ggml.scores": numbers([0.0] * count + list(SCORES.values()), "f4"),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": GEMMA,
    }
    return Tokenizer(read_tokenizer(Metadata(values)))


def joined_by_score(text: str) -> list[bytes]:
    """SentencePiece's algorithm as published: join the best-scoring neighbours, leftmost first."""
    symbols = list(text)
    while True:
        unions = [(-SCORES[a + b], at) for at, (a, b) in enumerate(pairwise(symbols)) if a + b in SCORES]
        if not unions:
            return [symbol.replace("\u2581", " ").encode() for symbol in symbols]
        _, at = min(unions)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=st.text() | st.text("the in12é\n '<|im_end>"))
def test_byte_level_text_survives_the_round_trip(pre: str, text: str) -> None:
    tokenizer = made(pre)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@cache
def made(pre: str) -> Tokenizer:
    return byte_level(pre)


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.text("theinandé "), prefix=st.booleans())
def test_sentencepiece_text_survives_the_round_trip(text: str, prefix: bool) -> None:
    text = text.replace("\u2581", "")  # stands for a space, in SentencePiece itself too
    tokenizer = sentencepiece(prefix)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.text("the \n<b>é"))
def test_text_with_tokens_of_its_authors_survives_the_round_trip(text: str) -> None:
    text = text.replace("\u2581", "")
    tokenizer = gemma_like()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_runs_of_spaces_that_a_sentencepiece_file_defines_are_one_token() -> None:
    tokenizer = gemma_like()
    pieces = [tokenizer.piece(id) for id in tokenizer.encode("the    in  \n\n\n<b> the")[1:]]
    assert pieces == [b"the", b"   ", b" in", b"  ", b"\n\n", b"\n", b"<b>", b" the"]


def test_a_chat_in_gemmas_form() -> None:
    tokenizer = gemma_like()
    messages = [
        ("system", "be in"),
        ("user", " the <end_of_turn> in "),
        ("assistant", "hen"),
        ("user", "the"),
    ]
    ids = tokenizer.apply_chat_template([{"role": role, "content": text} for role, text in messages])
    assert [id for id in ids if id < 6] == [2, 4, 5, 4, 5, 4, 5, 4]
    text = "user\nbe in\n\nthe <end_of_turn> in\nmodel\nhen\nuser\nthe\nmodel\n"
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_ids == {1, 5}
    with pytest.raises(ConfigError, match="roles must alternate"):
        chat(tokenizer, "the", "in")


@settings(max_examples=300, deadline=None)
@given(text=st.text("theinandé bcdfgh.,xß"))
def test_sentencepiece_joins_by_score_as_the_published_algorithm_does(text: str) -> None:
    tokenizer = sentencepiece()
    spelled = "\u2581" + text.replace(" ", "\u2581") if text else ""
    expected = joined_by_score(spelled)
    found = [tokenizer.piece(id) for id in tokenizer.encode(text)[1:]]
    assert b"".join(found) == b"".join(expected)
    whole = [piece for piece in expected if piece.decode() in KNOWN]
    assert [piece for piece in found if piece.decode("utf-8", "replace") in KNOWN] == whole


@settings(max_examples=200, deadline=None)
@given(text=st.text(), cuts=st.lists(st.integers(0, 400)), start=st.booleans(), which=st.booleans())
def test_detokenising_in_pieces_equals_decoding_the_whole(
    text: str, cuts: list[int], start: bool, which: bool
) -> None:
    tokenizer = made("smollm") if which else sentencepiece()
    ids = tokenizer.encode(text)
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    whole = tokenizer.detokenizer(start_of_text=start)
    expected = whole.push(ids) + whole.finish()
    pieces = tokenizer.detokenizer(start_of_text=start)
    parts = [pieces.push(ids[low:high]) for low, high in pairwise(bounds)]
    assert "".join(parts) + pieces.finish() == expected
    assert "\ufffd" not in "".join(parts) or "\ufffd" in text


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 258)), cuts=st.lists(st.integers(0, 20)))
def test_any_token_ids_decode_alike_whole_and_in_pieces(ids: list[int], cuts: list[int]) -> None:
    tokenizer = made("smollm")
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    pieces = tokenizer.detokenizer()
    parts = [pieces.push(ids[low:high]) for low, high in pairwise(bounds)]
    data = b"".join(map(tokenizer.piece, ids))
    assert "".join(parts) + pieces.finish() == tokenizer.decode(ids) == data.decode("utf-8", "replace")


def test_a_character_over_several_tokens_appears_whole_and_a_lone_byte_at_the_end() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a😀")
    assert len(ids) == 5
    pieces = tokenizer.detokenizer()
    assert [pieces.push([id]) for id in ids] == ["a", "", "", "", "😀"]
    assert pieces.finish() == ""
    assert [pieces.push([id]) for id in ids[:3]] == ["a", "", ""]
    assert pieces.finish() == "\ufffd"


def test_an_answer_keeps_the_space_it_begins_with_and_a_whole_text_does_not() -> None:
    tokenizer = sentencepiece()
    ids = tokenizer.encode("the")
    assert tokenizer.decode(ids) == "the"
    assert tokenizer.detokenizer().push(ids) == " the"


def test_digits_stand_alone_in_smollm_and_in_groups_elsewhere() -> None:
    def cut(pre: str) -> list[bytes]:
        tokenizer = byte_level(pre, **{"tokenizer.ggml.add_bos_token": False})
        return [tokenizer.piece(id) for id in tokenizer.encode("the 12")]

    assert cut("smollm") == [b"the", b" ", b"1", b"2"]
    assert cut("gpt-2") == [b"the", b" 1", b"2"]
    assert cut("llama-bpe") == [b"the", b" ", b"12"]
    assert cut("qwen2") == [b"the", b" ", b"1", b"2"]


def test_the_smollm_cuts_are_those_of_the_original_tokenizer() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    ours = byte_level("smollm")
    pre = tokenizers.pre_tokenizers
    original = tokenizers.Tokenizer.from_str(ours._model.to_str())
    original.pre_tokenizer = pre.Sequence(
        [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
    )
    rng = random.Random(4)
    alphabet = [*"a1²Ⅳ٣ \n\té日!#\u00a0\u2003\x85\u200b😀\u017f", "  ", "'s", "the"]
    for _ in range(2000):
        text = "".join(rng.choices(alphabet, k=rng.randrange(12)))
        assert ours.encode(text) == original.encode(text, add_special_tokens=False).ids


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from([*CONTROLS, "<|im_", "end|>", "the", " ", "\n"])).map("".join))
def test_special_tokens_in_text_stay_text_unless_asked_for(text: str) -> None:
    tokenizer = made("smollm")
    ids = tokenizer.encode(text)
    assert not set(ids) & {0, 1, 2}
    assert tokenizer.decode(ids) == text
    asked = tokenizer.encode(text, special=True)
    assert sum(id < 3 for id in asked) == sum(text.count(control) for control in CONTROLS)


def test_user_defined_tokens_are_one_token_in_any_text() -> None:
    tokenizer = byte_level()
    assert tokenizer.vocab_size - 1 in tokenizer.encode("the <tool> in")
    assert tokenizer.decode(tokenizer.encode("the <tool> in")) == "the <tool> in"


def test_lone_surrogates_and_characters_without_bytes_become_replacement_characters() -> None:
    tokenizer = byte_level()
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"
    gaps = [*CONTROLS, *(c for c in byte_characters() if c not in "Ąñ")]
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": gaps,
        "tokenizer.ggml.merges": [],
    }
    lacking = Tokenizer(read_tokenizer(Metadata(values)))
    assert lacking.decode(lacking.encode("x\x04y\U00040000z")) == "x\ufffdy\ufffdz"


@pytest.mark.model
def test_smollm2_is_tokenised_as_by_its_authors() -> None:
    tokenizer = Tokenizer(read_gguf(known("smollm2-135m").path).tokenizer)
    # The ids that the tokenizer published with the model gives.
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}]) == [
        1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712,
        8182, 2, 198, 1, 4093, 198, 26843, 2, 198, 1, 520, 9531, 198,
    ]  # fmt: skip
    assert tokenizer.eos_ids == {0, 2}
    # This vocabulary has no token for some bytes.
    assert tokenizer.decode(tokenizer.encode("a\x04b é 日本 😀 12")) == "a\ufffdb é 日本 😀 12"


def test_a_tokenizer_survives_json() -> None:
    tokenizer = byte_level()
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.to_json() == tokenizer.to_json()
    assert again.encode("the in 12 é") == tokenizer.encode("the in 12 é")
    assert again.eos_ids == tokenizer.eos_ids == {0, 2}  # the file's own, and a known ending


def test_a_raw_prompt_starts_with_bos_only_where_the_file_says_so() -> None:
    assert byte_level().encode("the")[0] != 1
    assert byte_level(**{"tokenizer.ggml.add_bos_token": True}).encode("the")[0] == 1
    assert sentencepiece().encode("the")[0] == 1
    assert sentencepiece().encode("") == [1]


def test_a_sentencepiece_file_without_byte_tokens_is_refused() -> None:
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.scores": numbers([0.0, -1.0], "f4"),
    }
    with pytest.raises(ModelFileError, match="expected byte tokens <0x00> to <0xFF>, lacks <0x00>"):
        read_tokenizer(Metadata(values))


# Chat templates.


def chat(tokenizer: Tokenizer, *contents: str) -> list[int]:
    return tokenizer.apply_chat_template([{"role": "user", "content": content} for content in contents])


def test_the_chat_template_is_tokenised_as_the_text_it_renders_to() -> None:
    tokenizer = byte_level()
    rendered = "<|im_start|>user\nthe in<|im_end|>\n<|im_start|>assistant\n"
    assert chat(tokenizer, "the in") == tokenizer.encode(rendered, special=True)


FRAGMENTS = [*CONTROLS, "<|im_", "end|>", "<|", "|>", "<", ">", "d", "im", " ", "\n", "the", "\U00100000"]


@settings(max_examples=500, deadline=None)
@given(contents=st.lists(st.lists(st.sampled_from(FRAGMENTS)).map("".join), min_size=1, max_size=3))
def test_no_message_can_add_a_control_token(contents: list[str]) -> None:
    tokenizer = made("smollm")
    ids = chat(tokenizer, *contents)
    assert [id for id in ids if id < 3] == [1, 2] * len(contents) + [1]
    text = "".join(f"user\n{content.strip()}\n" for content in contents) + "assistant\n"
    assert tokenizer.decode(ids) == text


@settings(max_examples=500, deadline=None)
@given(contents=st.lists(st.sampled_from(FRAGMENTS), min_size=2, max_size=4))
def test_not_even_where_a_template_puts_its_own_pieces_around_it(contents: list[str]) -> None:
    source = "{% for m in messages %}<|{{ m.content | trim }}|>{{ m.content }}{% endfor %}"
    messages = [{"role": "user", "content": content} for content in contents]
    pieces = ChatTemplate(source, CONTROLS, {}).render(messages, add_generation_prompt=False)
    assert pieces == ["".join(f"<|{content.strip()}|>{content}" for content in contents)]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least one"),
        ("hello", "expected a list"),
        (["hello"], r"messages\[0\]: found str"),
        ([{"role": "user"}], r"messages\[0\]: found \['role'\]"),
        ([{"role": "user", "content": "x", "name": "y"}], "expected the keys role and content"),
        ([{"role": "im_end", "content": "x"}], "found 'im_end', expected one of system, user"),
        ([{"role": "user", "content": 3}], "content: found int, expected text"),
    ],
)
def test_messages_that_are_no_conversation_are_refused(messages: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        byte_level().apply_chat_template(messages)


def with_template(source: str) -> Tokenizer:
    return byte_level(**{"tokenizer.chat_template": source})


def test_templates_have_what_model_files_expect() -> None:
    source = "{{ bos_token }}{{ messages[0] | tojson }}{{ strftime_now('%Y') | length }}{{ eos_token }}"
    tokenizer = with_template(source)
    assert [id for id in chat(tokenizer, "é") if id < 3] == [1, 2]
    assert tokenizer.decode(chat(tokenizer, "é")) == '{"role": "user", "content": "é"}4'


def test_a_template_that_refuses_the_messages_says_why() -> None:
    with pytest.raises(ConfigError, match="refuses the messages: roles must alternate"):
        chat(with_template("{{ raise_exception('roles must alternate') }}"), "x")


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content.nothing }}",
        "{% for i in range(10**9) %}x{% endfor %}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_a_model_file_error(source: str) -> None:
    with pytest.raises(ModelFileError, match=r"^chat template: "):
        chat(with_template(source), "x")


def test_a_model_without_template_says_to_use_raw_text() -> None:
    tokenizer = with_template("")
    assert not tokenizer.has_chat_template
    with pytest.raises(ConfigError, match="no chat template"):
        chat(tokenizer, "x")
