"""A second model with another tokenizer drafts text, which is cut into the target's own tokens.

The draft model always takes its likeliest token, so what is proposed is a function of the committed text:
fixed tokens, which every rule that takes fixed tokens can treat as what they are. A draw could not be
coupled, for noise belongs to the target's token ids, and its law over texts is out of reach.

Source: Timor et al., "Accelerating LLM inference with lossless speculative decoding algorithms for
heterogeneous vocabularies", 2025 (arXiv 2502.05202), string-level exact match. There the end of the text is
encoded anew in each step; here a text grows by the spelling of each committed token, so that nothing that
the draft model has read changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.core import NOTHING, Budget, Drawn, Step, TargetInfo, Tree, View
from paceline.drafters._companion import Companion, LoadModel
from paceline.drafters._options import check_probability
from paceline.drafters._vocabulary import Histories, Spelling
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.transcript import Tokenizer


class Slem:
    """Proposes one chain per row: the draft model's text in the target's tokens."""

    needs: frozenset[str] = frozenset()
    whole = False
    drawn = frozenset({Drawn.FIXED})
    branches = False

    def __init__(
        self,
        companion: Companion,
        tokenizer: Tokenizer,
        own: Tokenizer,
        tokens: int,
        min_probability: float,
    ) -> None:
        self._companion = companion
        self._histories = Histories(Spelling(tokenizer, own))
        self._tokenizer = tokenizer
        self._own = own
        self._tokens = tokens
        self._min_probability = min_probability

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """A chain for each row that decodes and has room; all rows draft in the same passes."""
        spelled = [
            self._histories.get(slot, history)
            for slot, history in zip(view.slots, view.histories, strict=True)
        ]
        pieces: dict[int, list[tuple[int, float]]] = {}
        """{row: the draft model's tokens and their probabilities}"""
        for row, budget in enumerate(budgets):
            if min(budget) > 0 and spelled[row]:
                room = self._companion.room(view.slots[row], spelled[row], self._tokens)
                if room >= self._tokens:
                    pieces[row] = []
        going = dict.fromkeys(pieces, 1.0)
        for _ in range(self._tokens):
            if not going:
                break
            paths = [(row, tuple(token for token, _ in pieces[row])) for row in going]
            found = self._companion.score(view.slots, spelled, paths)
            for row, logits in zip(list(going), found, strict=True):
                token = int(logits.argmax())
                share = 1 / float(np.exp(logits - logits[token]).sum())
                going[row] *= share
                if going[row] <= self._min_probability or not self._own.piece(token):
                    del going[row]
                else:
                    pieces[row].append((token, share))
        return [
            self._chain(pieces[row], min(budget)) if pieces.get(row) else NOTHING
            for row, budget in enumerate(budgets)
        ]

    def _chain(self, drafted: Sequence[tuple[int, float]], length: int) -> Tree:
        """The text of these tokens in the target's, and their confidences: of each the product over the
        draft model's tokens that begin in it."""
        text, shares = b"", []
        for token, share in drafted:
            piece = self._own.piece(token)
            text += piece
            shares += [share, *[1.0] * (len(piece) - 1)]
        whole = text.decode(errors="ignore")  # without a character that is not complete
        tokens = self._tokenizer.encode_part(whole)[:length] if whole else []
        confidences, at = [], 0
        for token in tokens:
            end = at + len(self._tokenizer.piece(token))
            confidences.append(float(np.prod(shares[at:end])))
            at = end
        return Tree(tokens, range(-1, len(tokens) - 1), confidences=confidences)

    def observe(self, step: Step) -> None:
        """The histories say all there is to know."""

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        self._companion.release(slots)
        self._histories.release(slots)


def build(
    info: TargetInfo,
    load_model: LoadModel,
    tokenizer: Tokenizer,
    *,
    model: str = "",
    tokens: int = 4,
    min_probability: float = 0.3,
) -> Slem:
    """A second model with any tokenizer as drafter, by its text.

    model            a known model's name, or a file
    tokens           drafted tokens of that model, at most
    min_probability  the draft ends where its text becomes less likely than this

    Raises ConfigError for a value out of range, IncompatibleDrafter for a model without a tokenizer,
    ModelFileError for the model's file.
    """
    check_probability("slem", "min_probability", min_probability)
    if tokens < 1:
        raise ConfigError(f"slem:tokens must be at least 1, got {tokens}")
    if not model:
        raise ConfigError("slem:model must name a model, as in slem:model=NAME or slem:model=FILE")
    companion, own = load_model(model)
    if own is None:
        raise IncompatibleDrafter(f"slem needs a model with a tokenizer, and {model} has none")
    return Slem(Companion(companion), tokenizer, own, tokens, min_probability)
