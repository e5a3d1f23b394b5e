"""The tokenizer of a folder as the Hugging Face hub has it, against the tokenizers library itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Model

from paceline.errors import ModelFileError
from paceline.models.folder import read_folder_tokenizer
from paceline.models.tokenizer import Tokenizer

TEXTS = ("It is well known.", " two  spaces", "naïve café 😀", "", "a<|end|>b", "x = [1, 22]\n\n\ty")
CORPUS = [*TEXTS, "the quick brown fox jumps over the lazy dog", "it is known that spaces are well known"] * 3
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SPECIAL = ["<|pad|>", "<|start|>", "<|end|>"]


def byte_level() -> Model:
    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    model.add_tokens([AddedToken("[tool]", normalized=False)])
    return model


def sentence_piece(*, once: bool = True) -> Model:
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    model = Model(models.BPE(byte_fallback=True))
    if once:
        model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=[*SPECIAL, *pieces]))
    held = json.loads(model.to_str())
    held["added_tokens"] = [token for token in held["added_tokens"] if token["content"] not in pieces]
    model = Model.from_str(json.dumps(held))
    start = model.token_to_id("<|start|>")
    model.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", start)]
    )
    return model


KINDS = {
    "byte level": byte_level,
    "space once": sentence_piece,
    "space everywhere": lambda: sentence_piece(once=False),
}


def write(folder: Path, model: Model, **settings: Any) -> Path:
    (folder / "tokenizer.json").write_text(model.to_str(), encoding="utf-8")
    settings = {
        "bos_token": "<|start|>",
        "eos_token": {"content": "<|end|>"},
        "chat_template": TEMPLATE,
    } | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_texts_become_the_librarys_ids_and_come_back(kind: str, tmp_path: Path) -> None:
    model = KINDS[kind]()
    tokenizer = Tokenizer(read_folder_tokenizer(write(tmp_path, model)))
    for text in TEXTS:
        plain = text.replace("<|end|>", "")
        assert tokenizer.encode(plain) == (model.encode(plain).ids if plain else model.encode("").ids)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == model.decode(ids)
    assert tokenizer.eos_ids == {2, 0}
    assert tokenizer.vocab_size == model.get_vocab_size()
    assert Tokenizer.from_json(tokenizer.to_json()).encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_cannot_forge_control_tokens(kind: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer(read_folder_tokenizer(write(tmp_path, KINDS[kind]())))
    assert 2 not in tokenizer.encode("a<|end|>b")
    assert 2 in tokenizer.encode("a<|end|>b", special=True)
    forged = tokenizer.apply_chat_template([{"role": "user", "content": "a<|end|>b"}])
    assert forged.count(2) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_becomes_the_ids_of_its_whole_text(kind: str, tmp_path: Path) -> None:
    model = KINDS[kind]()
    tokenizer = Tokenizer(read_folder_tokenizer(write(tmp_path, model)))
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "It is known."}])
    text = "<|start|>user\nIt is known.<|end|>\n<|start|>assistant\n"
    assert ids == model.encode(text, add_special_tokens=False).ids


def test_a_part_of_a_text_gets_no_space_of_the_tokenizers_own(tmp_path: Path) -> None:
    tokenizer = Tokenizer(read_folder_tokenizer(write(tmp_path, sentence_piece())))
    pieces = b"".join(map(tokenizer.piece, tokenizer.encode_part("well known")))
    assert pieces == b"well known"
    assert tokenizer.encode_part("") == []


def test_a_template_in_a_file_of_its_own_counts(tmp_path: Path) -> None:
    write(tmp_path, byte_level(), chat_template=[{"name": "default", "template": "named"}])
    assert read_folder_tokenizer(tmp_path)["chat_template"] == "named"
    (tmp_path / "chat_template.jinja").write_text("own")
    assert read_folder_tokenizer(tmp_path)["chat_template"] == "own"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("{", "is damaged"),
        ("[]", "expected an object"),
        ("{}", "no decoder"),
        ('{"decoder": {"type": "WordPiece"}}', "this one has WordPiece"),
        ('{"decoder": {"type": "ByteLevel"}}', "is no tokenizer"),
    ],
)
def test_a_file_that_is_no_such_tokenizer_is_named(content: str | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFileError, match=says):
        read_folder_tokenizer(tmp_path)
