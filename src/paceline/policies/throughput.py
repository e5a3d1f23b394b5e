"""Draft what raises the expected tokens per second of the whole batch, down to nothing.

A step over R requests emits R tokens and those of the drafted ones that are accepted; it takes what a pass
over so many tokens takes. Candidates of all requests are ranked by the calibrated probability of their whole
path, and the prefix of that ranking is scored which maximises

    (R + sum of the probabilities) / cost(tokens in the pass).

No choice of as many candidates has a larger sum, and since a path is never likelier than its beginning, every
prefix holds with a token all tokens above it. Costs are measured (`_cost.py`), probabilities learned from
every proposal (`_calibration.py`). Where drafting saves less than it costs, it rests (`paceline.rest`): for
each request, which gets fewer steps to prove itself where the first steps of others were a loss, and two or
three where drafting alone takes longer than plain decoding. In a pass that prompts fill nothing is drafted.

Under a rule that compares laws a drawn token must not be left out because of what it is. There the number of
levels that are drawn is decided beforehand, in `allot`, from how often earlier levels were accepted; fixed
tokens are chosen as above.

Sources: SmartSpec, Liu et al., 2024 (arXiv 2406.14066) for goodput as the goal; EAGLE-2, Li et al., 2024
(arXiv 2406.16858) for the ranking by path probability; Sequoia, Chen et al., 2024 (arXiv 2402.12374) for
trees sized by the measured cost of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline.core import Budget, Step, Tree, View
from paceline.errors import ConfigError
from paceline.policies._calibration import Calibration
from paceline.policies._cost import PassCost
from paceline.policies._levels import Levels
from paceline.policies.fixed import ALL, even
from paceline.rest import Rest

NOTHING_LEFT = Budget(0, 0)


class Throughput:
    """Ranks the proposals of all rows and scores as many as pay."""

    def __init__(self, cost: PassCost, candidates: int, nodes: int = ALL) -> None:
        self.nodes = nodes
        self._cost = cost
        self._candidates = candidates
        self._calibrations: dict[str, Calibration] = {}
        self._levels: dict[str, Levels] = {}
        self._rests: dict[int, Rest] = {}  # by slot
        self._firsts: dict[str, float] = {}  # by drafter: what the first steps of requests gained lately
        self._names: dict[int, str] = {}  # by slot
        self._most = 0
        self._proposed: Sequence[Tree] = ()
        self._cells: dict[int, list[int]] = {}  # by row
        self._drafted: list[int] = []  # by row

    def allot(self, view: View, limits: Sequence[Budget], nodes: int) -> Sequence[Budget]:
        """Room for the candidates of every row whose drafting does not rest."""
        nodes = self._most = min(nodes, self.nodes) if self.nodes else nodes
        budgets = list(limits)
        drafting = 0
        known = sum(view.ends) - sum(view.starts)
        full = self._cost.full(known)
        for row, limit in enumerate(limits):
            if limit.nodes:
                # What a grammar forces is certain, whatever the drafter is worth.
                forced = view.controls[row].matcher is not None
                if full and not forced:
                    budgets[row] = NOTHING_LEFT
                    continue
                rest = self._rests.get(view.slots[row])
                if rest is None:
                    rest = self._rests[view.slots[row]] = Rest()
                if rest.begin() or forced:
                    drafting += 1
                else:
                    budgets[row] = NOTHING_LEFT
        if drafting and view.coupled:
            room = max(MIN_CANDIDATES, self._candidates // drafting)
            budgets = [budget if budget.nodes <= room else Budget(room, budget.depth) for budget in budgets]
        elif drafting:
            budgets = even(budgets, nodes)
            for row, budget in enumerate(budgets):
                levels = self._levels.get(view.drafters[row])
                if levels is not None and budget.nodes:
                    depth = levels.best(drafting, known, budget, self._cost)
                    budgets[row] = Budget(budget.nodes if depth else 0, depth)
        return budgets

    def choose(self, view: View, trees: Sequence[Tree]) -> Sequence[Tree]:
        """The candidates that pay, of all rows together."""
        self._proposed = trees
        self._cells = {}
        ranked: list[tuple[float, int, int]] = []
        drawn = 0
        for row, tree in enumerate(trees):
            if tree.tokens:
                name, slot = view.drafters[row], view.slots[row]
                calibration = self._calibrations.get(name)
                if calibration is None:
                    calibration = self._calibrations[name] = Calibration()
                if tree.origins and not view.coupled:
                    drawn += len(tree.tokens)
                    continue
                self._names[slot] = name
                self._cells[row], paths = calibration.estimate(slot, tree)
                ranked += [(-path, row, node) for node, path in enumerate(paths)]
        if ranked:
            ranked.sort()
            trees = self._cut(view, trees, ranked[: self._best(view, ranked, drawn)])
        self._drafted = [len(tree.tokens) for tree in trees]
        return trees

    def _best(self, view: View, ranked: Sequence[tuple[float, int, int]], drawn: int) -> int:
        """How many of the candidates maximise tokens per second. Prompts that are read in the same pass cost
        what they cost anyway, and bring no tokens: only what drafting adds to them counts."""
        cost = self._cost.relative
        known = sum(view.ends) - sum(view.starts)
        tokens = sum(map(view.draws, range(len(view.slots))))
        first = known + drawn
        sunk = cost(first) - cost(min(first, tokens + drawn))
        expected = float(tokens)
        best, most = 0, expected / (cost(first) - sunk)
        for count, candidate in enumerate(ranked[: self._most - drawn], 1):
            expected -= candidate[0]
            rate = expected / (cost(first + count) - sunk)
            if rate > most:
                best, most = count, rate
        return best

    def _cut(self, view: View, trees: Sequence[Tree], chosen: Sequence[tuple[float, int, int]]) -> list[Tree]:
        kept: dict[int, list[int]] = {row: [] for row in self._cells}
        for _, row, node in chosen:
            kept[row].append(node)
        cut = list(trees)
        for row, nodes in kept.items():
            nodes.sort()
            cut[row] = trees[row].some(nodes)
        return cut

    def observe(self, step: Step) -> None:
        """Learn from every proposal, scored or not, and from the time of the pass."""
        view, cost = step.view, self._cost
        size = len(step.draft.tokens)
        drafted = sum(self._drafted)
        full = cost.full(size - drafted)
        cost.learn(size, step.seconds)
        # Whether drafting is worth its own time and its row's share of the longer pass.
        working = sum(bool(tree.tokens) for tree in self._proposed) or 1
        worth = cost.seconds(size - drafted) / max(1, sum(root >= 0 for root in step.draft.roots))
        each = (cost.seconds(size) - cost.seconds(size - drafted)) / max(1, drafted)
        for row, tree in enumerate(self._proposed):
            slot = view.slots[row]
            rest = self._rests.get(slot)
            if rest is None or rest.resting or full:
                continue
            gained = (
                len(step.verdict.paths[row]) * worth - self._drafted[row] * each - step.drafting / working
            )
            gained = max(gained, -MOST_LOST * worth)
            rest.worked(gained)
            if rest.steps <= FEW_STEPS:
                name = view.drafters[row]
                self._firsts[name] = FIRSTS_KEPT * self._firsts.get(name, 0.0) + gained
                if rest.steps == FEW_STEPS and self._firsts[name] < 0:
                    rest.hurry(LONG_PAUSE)
            if rest.balance < -UNBEARABLE * worth and not rest.resting:
                rest.hurry(DEAR_PAUSE)
            if row in self._cells:
                name = view.drafters[row]
                self._calibrations[name].learn(slot, tree, self._cells[row], step.emitted(row))
            elif tree.tokens:
                levels = self._levels.setdefault(view.drafters[row], Levels())
                levels.learn(tree, len(step.verdict.paths[row]))

    def release(self, slots: Sequence[int]) -> None:
        """Forget what was learned of these sequences alone."""
        for slot in slots:
            self._rests.pop(slot, None)
            name = self._names.pop(slot, None)
            if name is not None:
                self._calibrations[name].forget(slot)


MIN_CANDIDATES = 4
FEW_STEPS, LONG_PAUSE = 8, 32
"""Steps after which a request is judged, and of its first pause, where drafting did not pay for others."""
MOST_LOST, UNBEARABLE, DEAR_PAUSE = 2.0, 3.5, 64
"""In plain steps: what a single step may count as lost, for the first one reads a whole prompt and any may be
held up by another program; what lost steps may come to before a request is judged at once; the pause then."""
FIRSTS_KEPT = 0.99
"""What the balance of first steps keeps of its weight with each further one: a dozen requests count."""


def build(cost: PassCost, *, candidates: int = 32, nodes: int = ALL) -> Throughput:
    """The most tokens per second.

    candidates  drafted tokens that are looked at per step, shared by the requests; how many of them are
                scored is worked out, within what the engine allows
    nodes       drafted tokens that may be scored per step, and are looked at if `candidates` are fewer; 0 for
                as many as the engine allows. More than its 16 pay where a pass over many takes little longer

    Raises ConfigError for a value out of range.
    """
    if candidates < 1:
        raise ConfigError(f"throughput:candidates must be at least 1, got {candidates}")
    if nodes < 0:
        raise ConfigError(f"throughput:nodes must be 0 or more, got {nodes}")
    return Throughput(cost, max(candidates, nodes), nodes)
