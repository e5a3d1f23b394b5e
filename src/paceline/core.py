"""The records that the stages of one step hand to each other, and the Protocols of the stages.

    scheduler.plan -> View, limits -> Policy.allot -> budgets -> Drafter.propose -> Tree per row
      -> Policy.choose -> Tree per row -> Draft.pack -> Draft
      -> Target.forward -> Scores -> warp -> Laws -> Rule -> Verdict
      -> Target.commit, Drafter.observe, Policy.observe, scheduler.apply

Letters in the shapes: B rows (requests) in this step, N nodes of all rows together, S scored nodes,
V vocabulary, H hidden size. Rows are packed one behind the other, never padded.

Every row of a step starts with its *known* tokens: those that are part of the answer or the prompt
already but not yet in the target's cache. While a row decodes there is exactly one, the pending token;
while its prompt is being read there are as many as the chunk holds. The drafted tree hangs below the
last known token, the row's root.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from paceline.laws import Controls, Laws
    from paceline.noise import Noise

Array = Any
"""An array of NumPy or of another array-API library, on the target's device."""


class Lane(IntEnum):
    """Which stream of a request's noise a draw uses; one lane never sees another's numbers."""

    TARGET = 0
    ACCEPT = 1
    RESIDUAL = 2
    DRAFT = 3


class Promise(Enum):
    """What a rule promises about the answers, from the strongest to none."""

    TOKENS = "bit-exact"
    """The very tokens of plain decoding with the same seed."""
    TIES = "bit-exact but for ties"
    """Those tokens, but where two are so close that the rounding of a wider pass decides between them."""
    LAW = "exact in law"
    """Other tokens than plain decoding's, drawn from the same law."""
    LOSSY = "lossy"
    """Tokens that the target might not have drawn."""


class Drawn(IntEnum):
    """How a drafted token came about, once the tokens above it were known."""

    FIXED = 0
    """Chosen, not drawn: a function of what was committed before the step and of the path above."""
    IID = 1
    """Drawn from its law independently of its siblings, which may hold the same token."""
    WITHOUT_REPLACEMENT = 2
    """Drawn from its law without the tokens of the siblings drawn from that law before it."""
    COUPLED = 3
    """Drawn with the target's own noise, so as to agree with it as often as possible."""


class Origin(NamedTuple):
    """How a drafted token was drawn.

    law: probabilities [V] that sum to 1: the very law it was drawn from, after all cuts (for a token drawn
    without replacement, before its earlier siblings were taken out). Siblings drawn from one law share
    one array. For a coupled token, which no rule asks for its law, it may be over some of the tokens alone.
    """

    drawn: Drawn
    law: Array


ALL_FIXED: Mapping[int, Origin] = MappingProxyType({})


class Budget(NamedTuple):
    """How much may be drafted for one row.

    nodes: drafted tokens the target will score; depth: drafted tokens along one path.
    """

    nodes: int
    depth: int


class Tree(NamedTuple):
    """Tokens proposed for one row. `tokens[i]` follows `tokens[parents[i]]`; a parent of -1 is the root,
    and every parent comes before its children. `origins[i]` says how token i was drawn; one that is not
    there is fixed. `paceline.drafting.grow` makes trees of drawn tokens. `confidences[i]` is the drafter's
    own estimate, 0 to 1, of how likely token i is accepted once its parent was; empty if it makes none.
    `sources[i]` says which parts of a mixture propose token i, bit j for part j; empty for one drafter's
    tree."""

    tokens: Sequence[int]
    parents: Sequence[int]
    origins: Mapping[int, Origin] = ALL_FIXED
    confidences: Sequence[float] = ()
    sources: Sequence[int] = ()

    @staticmethod
    def chain(tokens: Sequence[int]) -> Tree:
        """One path: every token follows the one before it."""
        return Tree(tokens, range(-1, len(tokens) - 1))

    def some(self, kept: Sequence[int]) -> Tree:
        """The tree with these nodes only. kept: ascending, with each node its parent."""
        if len(kept) == len(self.tokens):
            return self
        places = {-1: -1}
        for place, node in enumerate(kept):
            places[node] = place
        origins = self.origins
        return Tree(
            [self.tokens[node] for node in kept],
            [places[self.parents[node]] for node in kept],
            {places[node]: origin for node, origin in origins.items() if node in places}
            if origins
            else origins,
            [self.confidences[node] for node in kept] if self.confidences else (),
            [self.sources[node] for node in kept] if self.sources else (),
        )


LAST = "last"
"""The tap of what a target's head turns into logits, behind its last norm."""

UNSURE = 0.5
"""The confidence in a token where a drafter gives none."""

NOTHING = Tree((), ())
NONE_PREDICTED: Mapping[int, Sequence[int]] = MappingProxyType({})
NONE_WANTED: Mapping[int, range] = MappingProxyType({})
TOKENS_ONLY: Mapping[int, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class View:
    """What one step works on, and all that a drafter may see. One entry per row.

    slots      the sequence each row extends; a slot names one request for its whole life
    histories  committed token ids, prompt first, pending token last; owned by the scheduler, read only
    starts     tokens of the row already in the target's cache
    ends       the known tokens of this step are histories[row][starts[row]:ends[row]]
    controls   how each request's tokens are drawn: its sampling parameters and the counts they need;
               owned by the scheduler, read only
    seeds      the request's noise seed, uint64
    prompts    prompt length of each row: histories[row][:prompts[row]] is the prompt
    drafters   name of the drafter each request asked for
    predictions  {slot: token ids} of the answers that their callers predicted
    wanted     {slot: places in its history} of known tokens whose logits are wanted though nothing is drawn
               there: their caller asked for the log-probabilities of the prompt
    inputs     {slot: what its request gives the target beside tokens}; only the target knows what it is
    coupled    whether drafters draw with the target's own noise (under a rule that compares tokens) or
               with noise of their own (under a rule that compares laws)
    """

    slots: Sequence[int]
    histories: Sequence[Sequence[int]]
    starts: Sequence[int]
    ends: Sequence[int]
    controls: Sequence[Controls]
    seeds: Sequence[int]
    prompts: Sequence[int]
    drafters: Sequence[str]
    predictions: Mapping[int, Sequence[int]] = field(default_factory=lambda: NONE_PREDICTED)
    wanted: Mapping[int, range] = field(default_factory=lambda: NONE_WANTED)
    inputs: Mapping[int, Any] = field(default_factory=lambda: TOKENS_ONLY)
    coupled: bool = True

    def draws(self, row: int) -> bool:
        """Whether this step reaches the row's last committed token, so that a new one is drawn."""
        return self.ends[row] == len(self.histories[row])

    def rows(self, rows: Sequence[int]) -> View:
        """The same step, seen by some of its rows only."""
        columns: dict[str, Any] = {
            column.name: [getattr(self, column.name)[row] for row in rows]
            for column in fields(self)
            if column.name not in ("predictions", "wanted", "inputs", "coupled")
        }
        return replace(self, **columns)


@dataclass(frozen=True, slots=True)
class Draft:
    """All rows of a step, packed: each row's known tokens as a chain, then its drafted tree.

    slots      int32 [B]    the sequence each row extends
    offsets    int32 [B+1]  row r owns the nodes [offsets[r], offsets[r+1])
    starts     int32 [B]    tokens of the row already in the cache: the position of its first node
    tokens     int32 [N]
    parents    int32 [N]    index of the parent node; -1 for a row's first node, whose parent is the cache
    positions  int32 [N]    absolute position of the node's token in its sequence
    roots      one node per row, its last known token; -1 where the row draws no token in this step
    scored     int32 [S]    nodes whose logits are wanted, ascending: roots, drafted nodes, and those that
                            `View.wanted` names
    origins    {node: how its token was drawn}; a drafted node that is not there is fixed
    inputs     as in `View`
    """

    slots: NDArray[np.int32]
    offsets: NDArray[np.int32]
    starts: NDArray[np.int32]
    tokens: NDArray[np.int32]
    parents: NDArray[np.int32]
    positions: NDArray[np.int32]
    roots: Sequence[int]
    scored: NDArray[np.int32]
    origins: Mapping[int, Origin] = field(default_factory=lambda: ALL_FIXED)
    inputs: Mapping[int, Any] = field(default_factory=lambda: TOKENS_ONLY)

    @staticmethod
    def pack(view: View, trees: Sequence[Tree]) -> Draft:
        """Put every row's known tokens and its proposed tree behind one another.

        Raises ValueError if a tree's parent does not come before its child, or if a row that draws
        nothing was given a tree.
        """
        offsets, roots = [0], []
        scored: list[int] = []
        tokens: list[int] = []
        parents: list[int] = []
        positions: list[int] = []
        origins: dict[int, Origin] = {}
        for row, tree in enumerate(trees):
            start, end = view.starts[row], view.ends[row]
            first, root = len(tokens), len(tokens) + end - start - 1
            tokens.extend(view.histories[row][start:end])
            parents.append(-1)
            parents.extend(range(first, root))
            positions.extend(range(start, end))
            if places := view.wanted.get(view.slots[row]):
                scored.extend(range(first + places.start - start, first + places.stop - start))
            if view.draws(row):
                roots.append(root)
                scored.append(root)
            elif tree.tokens:
                raise ValueError(f"row {row} is still reading its prompt and takes no draft, got {tree}")
            else:
                roots.append(-1)
            for token, parent in zip(tree.tokens, tree.parents, strict=True):
                if not -1 <= parent < len(tokens) - root - 1:
                    raise ValueError(f"row {row}: parent {parent} does not come before its child")
                above = root + 1 + parent
                scored.append(len(tokens))
                tokens.append(token)
                parents.append(above)
                positions.append(positions[above] + 1)
            origins.update((root + 1 + node, origin) for node, origin in tree.origins.items())
            offsets.append(len(tokens))
        return Draft(
            np.array(view.slots, np.int32),
            np.array(offsets, np.int32),
            np.array(view.starts, np.int32),
            np.array(tokens, np.int32),
            np.array(parents, np.int32),
            np.array(positions, np.int32),
            roots,
            np.array(scored, np.int32),
            origins,
            view.inputs,
        )

    def rows(self, rows: Sequence[int]) -> Draft:
        """The same draft with some of its rows only, in the order asked for."""
        nodes = self.nodes(rows)
        moved = np.full(len(self.tokens) + 1, -1, np.int32)  # the last entry serves a parent or root of -1
        moved[nodes] = np.arange(len(nodes), dtype=np.int32)
        sizes = np.diff(self.offsets)[rows]
        return Draft(
            self.slots[rows],
            np.concatenate(([0], np.cumsum(sizes))).astype(np.int32),
            self.starts[rows],
            self.tokens[nodes],
            moved[self.parents[nodes]],
            self.positions[nodes],
            moved[[self.roots[row] for row in rows]].tolist(),
            np.sort(moved[self.scored[np.isin(self.scored, nodes)]]),
            {int(moved[node]): origin for node, origin in self.origins.items() if moved[node] >= 0},
            self.inputs,
        )

    def nodes(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """The nodes of some rows, row after row: int64 [their number]."""
        return np.concatenate([np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows])


@dataclass(frozen=True, slots=True)
class Scores:
    """What the target says about a draft.

    logits    float [S, V]: raw logits for the token after each scored node: NumPy's, or if they stay on a
              device a `paceline.device.OnDevice`
    features  {tap: float [N, H]}: only the taps asked for; of a target's lookahead (`LookAhead`) [N, L, H]
    """

    logits: Array
    features: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule decided, one entry per row.

    paths        accepted drafted nodes (indices into the draft) from the root's child downwards;
                 known tokens are always kept and not listed
    next_tokens  the token after the path, drawn by the target: the new pending token; -1 where the row
                 drew nothing
    """

    paths: Sequence[Sequence[int]]
    next_tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Step:
    """What happened in one step, for drafters and policies. A chunk of prompt is a step with an empty path.

    seconds: how long the target's pass took
    drafting: how long drafters and policy took: to look at the step before, and to propose for this one
    """

    view: View
    draft: Draft
    scores: Scores
    verdict: Verdict
    seconds: float = 0.0
    drafting: float = 0.0

    def emitted(self, row: int) -> list[int]:
        """The tokens that the row's answer grew by; none where it drew nothing."""
        if self.draft.roots[row] < 0:
            return []
        tokens = self.draft.tokens
        return [*(int(tokens[node]) for node in self.verdict.paths[row]), self.verdict.next_tokens[row]]

    def rows(self, rows: Sequence[int]) -> Step:
        """The same step, seen by some of its rows only."""
        draft = self.draft.rows(rows)
        nodes = self.draft.nodes(rows)
        moved = {node: index for index, node in enumerate(nodes.tolist())}
        wanted = np.searchsorted(self.draft.scored, nodes[draft.scored])
        return Step(
            self.view.rows(rows),
            draft,
            Scores(
                self.scores.logits[wanted],
                {tap: values[nodes] for tap, values in self.scores.features.items()},
            ),
            Verdict(
                [[moved[node] for node in self.verdict.paths[row]] for row in rows],
                [self.verdict.next_tokens[row] for row in rows],
            ),
            self.seconds,
            self.drafting,
        )


class Inputs(Enum):
    """Whether a target takes anything of a request beside tokens, such as a source to translate."""

    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """What a target can do.

    name           for people
    vocab_size     V
    max_positions  tokens one sequence may hold, prompt and answer together
    cache_tokens   tokens that all sequences together may hold
    page_tokens    the cache is handed out in pages of this many tokens
    taps           names of the features it can return: "hidden.18" is what 18 layers made of the embeddings,
                   for `LAST` see there
    vocabulary     fingerprint of the tokenizer: where it is the same, token ids mean the same; empty if
                   there is no tokenizer
    layers         layers that a `Sketch` may leave out; 0: it has none
    shares_pages   whether it is a `PageSharing`, too
    row_invariant  whether the bits of a row's logits never depend on what else is in the pass
    inputs         whether its requests come with more than tokens
    """

    name: str
    vocab_size: int
    max_positions: int
    cache_tokens: int
    page_tokens: int
    taps: frozenset[str]
    vocabulary: str = ""
    layers: int = 0
    shares_pages: bool = False
    row_invariant: bool = True
    inputs: Inputs = Inputs.NONE

    def keeps(self, promise: Promise) -> Promise:
        """What is left of a rule's promise with this target."""
        return Promise.TIES if promise is Promise.TOKENS and not self.row_invariant else promise


class Shortcut(NamedTuple):
    """How a pass is made cheaper where its logits only serve to draft.

    skipped        layers, counted from 0, that are left out
    sinks, recent  of each row's cache at least so many first and last tokens are seen, and few others
    readout        what makes logits float [S, V] of the hidden states float [S, H] behind the last layer that
                   is run; None: the target's own last norm and head
    """

    skipped: frozenset[int] = frozenset()
    sinks: int = 0
    recent: int = 1 << 30
    readout: Callable[[Array], Array] | None = None


Sketch = Callable[[Draft, Shortcut], Array]
"""What a target may offer to drafters: a pass with a shortcut over known tokens and drafted trees.

It gives logits float [S, V] that are like the target's, valid until its next pass. What is committed does
not change, and nothing of the pass can be committed. `TargetInfo.layers` says what there is to leave out.
"""


LookAhead = Callable[[NDArray[np.float32]], str]
"""What a target may offer to drafters: it takes embeddings of its own width, float32 [L, H], and names a tap.

Where a pass is asked for that tap it also reads these embeddings, one behind the other, behind each row's
root and each drafted node, in the places of the next L tokens, which nobody knows yet. The tap is what the
head would read there, [N, L, H]; it holds no numbers (NaN) for other nodes, and where the cache had no room.
Scores do not change, and nothing of it can be committed. The same embeddings have the same tap.
"""


class Target(Protocol):
    """The model whose answers are given."""

    info: TargetInfo

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        """Score the wanted nodes, each against the cache and its own ancestors.

        The committed part of the cache does not change. Raises CapacityError when the cache is full.
        """
        ...

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        """Keep the known tokens and the accepted path of every row, forget the other nodes.

        Belongs to the last `forward`.
        """
        ...

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences and free their pages. An unknown slot is no error."""
        ...


class PageSharing(Protocol):
    """What a target offers whose sequences can hold the same pages: a prompt that begins like another one
    need not be read again.

    Only whole pages of committed tokens are shared, and what is in them never changes: a sequence goes on
    in a page of its own. A page is free once no sequence has it and nobody holds it.
    """

    def pages(self, slot: int) -> Sequence[int]:
        """The ids of the pages that are full of this sequence's committed tokens, first to last."""
        ...

    def adopt(self, slot: int, pages: Sequence[int]) -> None:
        """Let a new sequence begin with the tokens of these pages, which are held or in use.

        Raises ValueError if the slot is in use, or a page is free.
        """
        ...

    def hold(self, pages: Sequence[int]) -> None:
        """Keep these pages when the sequences that have them end. Raises ValueError if one is free."""
        ...

    def drop(self, pages: Sequence[int]) -> None:
        """Hold these pages no longer. Raises ValueError if one is not held."""
        ...


class Drafter(Protocol):
    """Proposes tokens. It decides only how fast an answer comes, never which."""

    needs: frozenset[str]
    """Feature taps it wants to see in `observe`."""

    whole: bool
    """Whether it must see those of all of a text, so that its requests share no prefix with others; else
    those behind which tokens are drawn will do."""

    drawn: frozenset[Drawn]
    """How its tokens come about where `View.coupled` is false; empty if it never proposes any."""

    branches: bool
    """Whether a token of its trees may have several children."""

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """One tree per row, within that row's budget; proposing nothing is legal."""
        ...

    def observe(self, step: Step) -> None:
        """Learn what was kept: the only way that information comes back from the target."""
        ...

    def release(self, slots: Sequence[int]) -> None:
        """These sequences ended."""
        ...


class Policy(Protocol):
    """Decides how much is drafted. It decides only how fast an answer comes, never which: under a rule that
    compares laws, tokens that were drawn may not be left out by what they are (docs/policy.md)."""

    nodes: int
    """Drafted tokens per step that it was told to score, all rows together; 0 for what the engine allows."""

    def allot(self, view: View, limits: Sequence[Budget], nodes: int) -> Sequence[Budget]:
        """What drafters may propose for each row, before anything is drafted, within the row's limit.

        limits: what the answer's end and the cache leave; (0, 0) for a row that still reads its prompt.
        nodes: drafted tokens that may be scored in this step, all rows together. Unless `view.coupled`,
        the budgets must keep to that together, for what is drawn is scored.
        """
        ...

    def choose(self, view: View, trees: Sequence[Tree]) -> Sequence[Tree]:
        """What of the proposed trees is scored, at most `nodes` tokens: each tree with some of its nodes,
        a node never without its parent. Belongs to the last `allot`."""
        ...

    def observe(self, step: Step) -> None:
        """Learn what was kept and how long the pass took. Belongs to the last `choose`."""
        ...

    def release(self, slots: Sequence[int]) -> None:
        """These sequences ended. An unknown slot is no error."""
        ...


class Rule(Protocol):
    """Decides which drafted tokens are kept. A pure function."""

    @property
    def name(self) -> str:
        """What users type."""
        ...

    @property
    def promise(self) -> Promise:
        """What holds for the answers."""
        ...

    @property
    def takes(self) -> frozenset[Drawn]:
        """The drafted tokens it can keep the promise for."""
        ...

    @property
    def trees(self) -> bool:
        """Whether it takes trees; otherwise chains only."""
        ...

    def __call__(self, draft: Draft, laws: Laws, noise: Noise) -> Verdict: ...
