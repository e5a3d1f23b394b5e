"""Small exact helpers for tests: a tokenizer of letters, drafters that do harm, rules that are wrong."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paceline.audit.subject import EOS as EOS
from paceline.audit.subject import Letters as AuditLetters
from paceline.core import NOTHING, Budget, Draft, Drawn, Promise, Scores, Shortcut, Step, Tree, View
from paceline.drafting import Paths, grow
from paceline.noise import Noise
from paceline.targets.table import TableTarget
from paceline.verify import Outcome, Row, rule

VOCABULARY = 12
PADS = 4
"""How many a `SketchingTable` reads."""


AHEAD = "ahead.0"


def state_width(vocab: int) -> int:
    """How wide the hidden states of a `SketchingTable` are."""
    return -(-vocab // 32) * 32


class SketchingTable(TableTarget):
    """A table that also makes sketches: each layer that is left out blurs the logits, and so does a part of
    the cache that is not seen. Its hidden states, the last as well, are all alike: 1 in the place of the
    token, 0 elsewhere. At pads, whatever they are, they are the logarithm of what its law says on average of
    the token behind the pad."""

    def __init__(self, vocab_size: int = VOCABULARY, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        states = {f"hidden.{layer}" for layer in range(5)}
        self.info = replace(self.info, layers=4, taps=self.info.taps | states | {AHEAD})
        self._states = np.eye(vocab_size, state_width(vocab_size), dtype=np.float32)
        self._blurs = np.random.default_rng(3).normal(0, 0.5, (5, *self.table.shape))

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        scores = super().forward(draft, frozenset())
        states = dict.fromkeys(taps, self._states[draft.tokens])
        if AHEAD in states:
            states[AHEAD] = self._ahead()[draft.tokens]
        return replace(scores, features=states)

    def look_ahead(self, embeddings: np.ndarray) -> str:
        """See `paceline.core.LookAhead`."""
        assert embeddings.shape == (PADS, state_width(self.info.vocab_size))
        return AHEAD

    def _ahead(self) -> np.ndarray:
        vocab = self.info.vocab_size
        weights = np.exp(self.table.mean(0))
        law = weights / weights.sum(1, keepdims=True)
        found = np.zeros((vocab, PADS, state_width(vocab)), np.float32)
        for place in range(PADS):
            found[:, place, :vocab] = np.log(np.linalg.matrix_power(law, place + 2) + 1e-4)
        return found

    def sketch(self, draft: Draft, shortcut: Shortcut) -> np.ndarray:
        """See `paceline.core.Sketch`."""
        if shortcut.readout is not None:
            return np.array(shortcut.readout(self._states[draft.tokens[draft.scored]]))
        before = np.where(draft.parents < 0, 0, draft.tokens[draft.parents])
        before[draft.offsets[:-1]] = [
            self.before(slot, start)
            for slot, start in zip(draft.slots.tolist(), draft.starts.tolist(), strict=True)
        ]
        blurs = self._blurs[[*shortcut.skipped, *([4] if shortcut.recent < 1 << 30 else [])]].sum(0)
        return (self.table + blurs)[before, draft.tokens][draft.scored]

    def before(self, slot: int, start: int) -> int:
        """The last token in a sequence's cache, which must hold as many as the sketch starts behind."""
        cached = self._cache.get(slot, ())
        if len(cached) != start:
            raise ValueError(f"slot {slot} starts at {start}, but {len(cached)} tokens are cached")
        return cached[-1] if cached else 0


class Detached(SketchingTable):
    """One whose sketches can be asked for without an engine that fills the cache."""

    def before(self, slot: int, start: int) -> int:
        return 0


class Letters(AuditLetters):
    """The audit's tokenizer of letters, for this vocabulary."""

    def __init__(self, vocab_size: int = VOCABULARY) -> None:
        super().__init__(vocab_size)


class Signs(Letters):
    """The same with a character of three bytes for each token, so that there are enough of them."""

    FIRST = 0x4E00

    def encode(self, text: str) -> list[int]:
        """Token ids of such characters; others have none."""
        return [ord(c) - self.FIRST for c in text if 0 <= ord(c) - self.FIRST < self.vocab_size]

    def encode_part(self, text: str) -> list[int]:
        """As `encode`."""
        return self.encode(text)

    def piece(self, token_id: int) -> bytes:
        """The token's character."""
        return b"" if token_id in self.eos_ids else chr(self.FIRST + token_id).encode()


class Quiet:
    """A drafter that learns nothing."""

    needs: frozenset[str] = frozenset()
    whole = False
    drawn = frozenset({Drawn.FIXED})
    branches = True

    def observe(self, step: Step) -> None: ...

    def release(self, slots: Sequence[int]) -> None: ...


class Known(Quiet):
    """Knows the plain answers of all requests, by seed; past an answer's end stand zeros."""

    def __init__(self, answers: Mapping[int, Sequence[int]]) -> None:
        self.answers = answers

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        return [self.row(view, row, budget) for row, budget in enumerate(budgets)]

    def row(self, view: View, row: int, budget: Budget) -> Tree:
        return Tree.chain(self.future(view, row, min(budget))) if min(budget) else NOTHING

    def future(self, view: View, row: int, count: int) -> list[int]:
        answer = self.answers.get(view.seeds[row], ())
        answered = len(view.histories[row]) - view.prompts[row]
        future = list(answer[answered : answered + count])
        return future + [0] * (count - len(future))


class Oracle(Known):
    """Always right."""


class AlwaysWrong(Known):
    """Never right, not even in one token."""

    def future(self, view: View, row: int, count: int) -> list[int]:
        answer = self.answers.get(view.seeds[row], ())
        if len(view.histories[row]) - view.prompts[row] >= len(answer):
            return []
        return [(token + 1) % VOCABULARY for token in super().future(view, row, count)]


class HalfRight(Known):
    """Right most of the time, wrong at random places."""

    def __init__(self, answers: Mapping[int, Sequence[int]]) -> None:
        super().__init__(answers)
        self.random = random.Random(5)

    def future(self, view: View, row: int, count: int) -> list[int]:
        future = super().future(view, row, count)
        return [t if self.random.random() < 0.7 else self.random.randrange(VOCABULARY) for t in future]


class RandomTrees(Known):
    """Trees of any shape with tokens at random, equal siblings included, on top of a few right ones."""

    def __init__(self, answers: Mapping[int, Sequence[int]]) -> None:
        super().__init__(answers)
        self.random = random.Random(7)

    def row(self, view: View, row: int, budget: Budget) -> Tree:
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        future = self.future(view, row, budget.depth) if budget.nodes else []
        for node in range(self.random.randint(0, budget.nodes)):
            parent = self.random.randint(-1, node - 1)
            depth = depths[parent] + 1 if parent >= 0 else 1
            if depth > budget.depth:
                parent, depth = -1, 1
            right = self.random.random() < 0.5
            tokens.append(future[depth - 1] if right else self.random.randrange(VOCABULARY))
            parents.append(parent)
            depths.append(depth)
        return Tree(tokens, parents)


class OverBudget(Known):
    """Right, but takes no notice of its budget."""

    def row(self, view: View, row: int, budget: Budget) -> Tree:
        if not view.draws(row):
            return NOTHING
        wide = self.future(view, row, 3)
        chain = self.future(view, row, 9)
        tokens = [*[(wide[0] + 1) % VOCABULARY] * 2, *chain, *wide]
        parents = [-1, 0, -1, *range(2, 2 + len(chain) - 1), 0, 1, 2]
        return Tree(tokens, parents)


class Empty(Quiet):
    """Proposes nothing."""

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        return [NOTHING] * len(budgets)


class Nearby(Quiet):
    """Knows the table of a target, blurred; the laws of its trees come from there."""

    def __init__(self, table: np.ndarray, widths: Sequence[int], blur: float = 0.7) -> None:
        self.table = table + np.random.default_rng(1).normal(0, blur, table.shape)
        self.widths = widths
        self.branches = max(widths) > 1

    def law(self, view: View, row: int, path: Sequence[int]) -> np.ndarray:
        """The law after a path of drafted tokens, at the request's temperature: float64 [V]."""
        before, last = (*view.histories[row][-2:], *path)[-2:]
        logits = self.table[before, last] / (view.controls[row].params.temperature or 1)
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()


class Likeliest(Nearby):
    """Proposes the likeliest tokens of every law: a fixed tree."""

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        return [self.tree(view, row, budget) for row, budget in enumerate(budgets)]

    def tree(self, view: View, row: int, budget: Budget) -> Tree:
        tokens: list[int] = []
        parents: list[int] = []
        level: list[tuple[int, tuple[int, ...]]] = [(-1, ())]
        for width in self.widths[: budget.depth]:
            below = []
            for parent, path in level:
                for token in np.argsort(-self.law(view, row, path))[:width].tolist():
                    if len(tokens) < budget.nodes:
                        below.append((len(tokens), (*path, token)))
                        tokens.append(token)
                        parents.append(parent)
            level = below
        return Tree(tokens, parents)


class Sampling(Nearby):
    """Draws from its laws, and says so."""

    def __init__(self, table: np.ndarray, widths: Sequence[int], drawn: str, blur: float = 0.7) -> None:
        super().__init__(table, widths, blur)
        self.how = Drawn[drawn.upper()]
        self.drawn = frozenset({self.how})

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        def laws(paths: Paths) -> list[np.ndarray]:
            return [self.law(view, row, path) for row, path in paths]

        return grow(view, budgets, laws, widths=self.widths, drawn=self.how)


ADVERSARIES = (AlwaysWrong, Oracle, HalfRight, RandomTrees, OverBudget)


@rule(Promise.TOKENS, takes=frozenset(Drawn))
def trusting(row: Row) -> Outcome:
    """A broken rule: takes the first drafted path without asking the target."""
    path: list[int] = []
    node = row.root
    while children := row.children(node):
        node = children[0]
        path.append(node)
    return path, row.own(node)


class NoiseByStep(Noise):
    """Broken noise: depends on how many draws came before, not on the position."""

    count = 0

    def key(self, row: int, lane: int, position: int) -> int:
        NoiseByStep.count += 1
        return super().key(row, lane, NoiseByStep.count)
