"""Between the tokens of two models with different tokenizers, by the bytes that tokens stand for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.core import Array
from paceline.drafters._companion import Companion
from paceline.drafting import Paths
from paceline.transcript import Tokenizer


def same_tokens(left: Tokenizer, right: Tokenizer) -> bool:
    """Whether every id stands for the same bytes in both, and the same ids end an answer."""
    return (
        left.vocab_size == right.vocab_size
        and left.eos_ids == right.eos_ids
        and all(left.piece(token) == right.piece(token) for token in range(left.vocab_size))
    )


class Spelling:
    """Spells the tokens of one model in those of another.

    A token whose bytes are also a token of the other model is that token; another one is cut up as the text
    it stands for, or byte by byte if it is no whole text. A control token has no bytes and is left out.
    So a text that grows by a token grows by the spelling of this token alone.

    shared  {token: the other model's token with the same bytes}, as two int64 arrays
    """

    def __init__(self, tokenizer: Tokenizer, other: Tokenizer) -> None:
        mine, theirs = _by_bytes(tokenizer), _by_bytes(other)
        both = sorted(mine.keys() & theirs.keys(), key=mine.__getitem__)
        self.shared = (
            np.array([mine[piece] for piece in both], np.int64),
            np.array([theirs[piece] for piece in both], np.int64),
        )
        self._piece = tokenizer.piece
        self._other = other
        self._ids = theirs
        self._known: dict[int, tuple[int, ...]] = {}

    def start(self) -> list[int]:
        """What the other model wants at the start of every text."""
        return self._other.encode("")

    def spell(self, token: int) -> tuple[int, ...]:
        """The token in the other model's tokens."""
        if token not in self._known:
            self._known[token] = self._spell(self._piece(token))
        return self._known[token]

    def _spell(self, piece: bytes) -> tuple[int, ...]:
        if piece in self._ids:
            return (self._ids[piece],)
        try:
            return tuple(self._other.encode_part(piece.decode())) if piece else ()
        except UnicodeDecodeError:
            return tuple(self._ids[byte] for byte in _bytes(piece) if byte in self._ids)


class Histories:
    """Growing token sequences in another model's tokens, one per slot."""

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling
        self._texts: dict[int, tuple[int, list[int]]] = {}

    def get(self, slot: int, history: Sequence[int]) -> list[int]:
        """The history so far, spelled anew from where the last call stopped."""
        read, text = self._texts.get(slot) or (0, self._spelling.start())
        for token in history[read:]:
            text.extend(self._spelling.spell(token))
        self._texts[slot] = len(history), text
        return text

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        for slot in slots:
            self._texts.pop(slot, None)


class SharedTokens:
    """A `Scorer` for a companion with another vocabulary: it proposes the tokens that both models have."""

    def __init__(self, companion: Companion, spelling: Spelling, vocab_size: int) -> None:
        self._companion = companion
        self._spelling = spelling
        self._vocab_size = vocab_size
        self._histories = Histories(spelling)

    def room(self, slot: int, history: Sequence[int], nodes: int) -> int:
        """As the companion has it."""
        spelled = self._histories.get(slot, history)
        return self._companion.room(slot, spelled, nodes) if spelled else 0

    def score(self, slots: Sequence[int], histories: Sequence[Sequence[int]], paths: Paths) -> list[Array]:
        """Logits [V] after each path, -inf for tokens that are not shared."""
        spelled = [self._histories.get(slot, text) for slot, text in zip(slots, histories, strict=True)]
        spell = self._spelling.spell
        found = self._companion.score(
            slots, spelled, [(row, tuple(t for token in path for t in spell(token))) for row, path in paths]
        )
        mine, theirs = self._spelling.shared
        result = []
        for logits in found:
            spread = np.full(self._vocab_size, -np.inf, logits.dtype)
            spread[mine] = logits[theirs]
            result.append(spread)
        return result

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        self._companion.release(slots)
        self._histories.release(slots)


def _by_bytes(tokenizer: Tokenizer) -> dict[bytes, int]:
    """{bytes: the token that stands for them}: of several the one that such a text is cut into."""
    found: dict[bytes, int] = {}
    for token in range(tokenizer.vocab_size):
        piece = tokenizer.piece(token)
        if piece and (piece not in found or _cut(tokenizer, piece) == [token]):
            found[piece] = token
    return found


def _cut(tokenizer: Tokenizer, piece: bytes) -> list[int]:
    try:
        return tokenizer.encode_part(piece.decode())
    except UnicodeDecodeError:
        return []


def _bytes(piece: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in piece]
