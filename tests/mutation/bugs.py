"""Bugs that other engines had, and some they could have, as edits of our code.

Each must be found twice: by our tests, and by `paceline audit` as a user would run it.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.mutation.changed import path_of


class Edit(NamedTuple):
    """In this module, `old`, which stands there exactly once, becomes `new`."""

    module: str
    old: str
    new: str


class Bug(NamedTuple):
    """name; where it was seen, None for our own; the edits that plant it; the tests that should fail; the
    arguments with which the audit should fail."""

    name: str
    seen: str | None
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    audit: str

    def sources(self) -> dict[str, str]:
        """{module: its source with the bug}. Raises ValueError if the code no longer fits an edit."""
        sources: dict[str, str] = {}
        for module, old, new in self.edits:
            source = sources.get(module) or path_of(module).read_text(encoding="utf-8")
            if source.count(old) != 1:
                raise ValueError(f"{self.name}: {module} holds {source.count(old)} times: {old}")
            sources[module] = source.replace(old, new)
        return sources


ENUMERATION = ("tests/lossless/test_enumeration.py",)
LAWS = ("tests/lossless/test_law.py",)
IDENTITY = ("tests/lossless/test_token_identity.py",)
NOISE = ("tests/unit/test_noise.py",)

TABLE = "--model table"
MATCH = f"{TABLE} --rule match --drafter markov --tokens 20000"


def law(rule: str, drafter: str, more: str = "", tokens: int = 25_000) -> str:
    """The audit of one rule and drafter."""
    return f"{TABLE} --rule {rule} --drafter {drafter} --tokens {tokens} {more}".strip()


WIDE = "markov:widths=4"
CHAIN, TREE, OTHERS = "markov", "markov:widths=2x2", "markov:widths=2x2,drawn=without_replacement"
RULES, VERIFY, NOISES = "paceline.rules.", "paceline.verify", "paceline.noise"
DRAFTING, LAWFUL, SCHEDULER = "paceline.drafting", "paceline.laws", "paceline.scheduler"
TABLES, CORE, TRANSCRIPT = "paceline.targets.table", "paceline.core", "paceline.transcript"
REQUEST = "paceline.request"

RAW = "np.exp(x - x.max()) / np.exp(x - x.max()).sum()"
"""The law of raw logits x, without any control."""

BUGS = (
    # The accept rule.
    Bug(
        "accepts where the token equals a draw of the target's, else a residual draw",
        "mlx-swift-lm 459",
        (Edit(f"{RULES}rejection", "row.accepts(node, p[x], q[x])", "row.own(row.parent(node)) == x"),),
        ENUMERATION,
        law("rejection", CHAIN),
    ),
    Bug(
        "accepts 5 % too easily",
        "lenient acceptance in several engines",
        (Edit(NOISES, "* 2.0**-52 * q < p", "* 2.0**-52 * q < 1.05 * p"),),
        NOISE,
        law("rejection", CHAIN, tokens=160_000),
    ),
    Bug(
        "accepts what is likeliest",
        "ATOM 2318, SGLang 39253, SSD's filler tokens",
        (
            Edit(
                f"{RULES}rejection",
                "row.accepts(node, p[x], q[x])",
                "row.accepts(node, p[x], q[x]) and p[x] < p.max()",
            ),
        ),
        ENUMERATION,
        law("rejection", CHAIN),
    ),
    Bug(
        "the ratio upside down",
        "openvino.genai validate_candidate",
        (Edit(f"{RULES}rejection", "row.accepts(node, p[x], q[x])", "row.accepts(node, q[x], p[x])"),),
        ENUMERATION,
        law("rejection", CHAIN),
    ),
    Bug(
        "one coin for all positions",
        "a shared uniform number",
        (
            Edit(
                NOISES,
                "position) + (index + 1) * GOLDEN)\n        return ((z",
                "position) + GOLDEN)\n        return ((z",
            ),
        ),
        NOISE,
        law("rejection", CHAIN, tokens=160_000),
    ),
    Bug(
        "siblings share one coin",
        "a uniform number per depth, not per node",
        (Edit(VERIFY, "node - self.root, float(p)", "self._parents[node] - self.root, float(p)"),),
        LAWS,
        law("kseq", WIDE, tokens=160_000),
    ),
    Bug(
        "the same coins in every step",
        "a generator seeded again for each step",
        (Edit(VERIFY, "self._position = int(draft.positions[self.root]) + 1", "self._position = 1"),),
        LAWS,
        law("block", CHAIN, tokens=160_000),
    ),
    Bug(
        "a coin that always shows 0.37",
        "a generator seeded again for each draw",
        (Edit(NOISES, "((z >> 12) + 0.5) * 2.0**-52 * q < p", "0.37 * q < p"),),
        NOISE,
        law("rejection", CHAIN),
    ),
    # What follows a refusal.
    Bug(
        "after a refusal a draw from the target's law",
        "early speculative samplers",
        (Edit(f"{RULES}rejection", "row.draw(residual(p, q))", "row.draw(p)"),),
        ENUMERATION,
        law("rejection", CHAIN),
    ),
    Bug(
        "after a refusal the target's law without the token",
        "sampled drafts handled as fixed ones",
        (
            Edit(
                f"{RULES}rejection",
                "return path, row.draw(residual(p, q))",
                "p[x] = 0 if p.sum() > p[x] else p[x]; return path, row.draw(p)",
            ),
        ),
        ENUMERATION,
        law("rejection", CHAIN),
    ),
    Bug(
        "the residual of the row below",
        "off by one after the refusal",
        (Edit(f"{RULES}rejection", "row.draw(residual(p, q))", "row.draw(residual(row.law(node), q))"),),
        ENUMERATION,
        law("rejection", CHAIN),
    ),
    Bug(
        "a residual that is not normalised",
        "multi-round rejection without the division",
        (
            Edit(
                f"{RULES}_residual", "return more / mass if mass > 0 else p", "return more if mass > 0 else p"
            ),
        ),
        ENUMERATION,
        law("recursive", TREE),
    ),
    Bug(
        "k-SEQ with the residual of plain rejection",
        None,
        (
            Edit(
                f"{RULES}kseq",
                "xp.minimum(q, p / rho) * ((1.0 - (1.0 - beta) ** k) / beta)",
                "q",
            ),
        ),
        ENUMERATION,
        law("kseq", WIDE, tokens=160_000),
    ),
    Bug(
        "traversal forgets what a refusal leaves of the share",
        None,
        (Edit(f"{RULES}traversal", "above.share = regained(mass, above.share)", "pass"),),
        ENUMERATION,
        law("traversal", TREE),
    ),
    Bug(
        "block verification stops at the first failure",
        "early break in the search for the longest prefix",
        (
            Edit(
                f"{RULES}block",
                "while i > 0 and not row.accepts(chain[i - 1], regained(mass, joint[i]), 1.0):",
                "while i > 0 and not all(\n"
                "        row.accepts(chain[j - 1], regained(excess(joint[j] * p[j], q[j])[1], joint[j]), 1)\n"
                "        for j in range(1, i + 1)\n"
                "    ):",
            ),
        ),
        ENUMERATION,
        law("block", CHAIN),
    ),
    # The token after a draft that was accepted whole.
    Bug(
        "the last token from the drafter's law",
        "bonus token from q",
        (
            Edit(
                f"{RULES}rejection",
                "return path, row.draw(p)",
                "return path, row.draw(row.proposal(path[-1]) if path else p)",
            ),
        ),
        ENUMERATION,
        law("rejection", CHAIN),
    ),
    Bug(
        "the last token without top-p",
        "bonus token unfiltered",
        (
            Edit(
                VERIFY,
                "self._known[node] = self._laws.law(node)",
                "x = self._laws._logits[self._laws._scored[node]]\n"
                "            import numpy as np\n"
                f"            self._known[node] = self._laws.law(node) if self.children(node) else {RAW}",
            ),
        ),
        LAWS,
        law("rejection", CHAIN, "--top-p 0.7"),
    ),
    Bug(
        "drafted tokens checked without top-p",
        "MLC 2940: top-p on one side only",
        (
            Edit(
                VERIFY,
                "self._known[node] = self._laws.law(node)",
                "x = self._laws._logits[self._laws._scored[node]]\n"
                "            import numpy as np\n"
                f"            self._known[node] = {RAW} if self.children(node) else self._laws.law(node)",
            ),
        ),
        LAWS,
        law("rejection", CHAIN, "--top-p 0.7"),
    ),
    # What the drafter says about its draws.
    Bug(
        "draws from a filtered law, declares the unfiltered one",
        "transformers 47932",
        (
            Edit(
                DRAFTING,
                "noise.draft(row, self._first, index + i, law, 1, ids)",
                "noise.draft(row, self._first, index + i, law * (law > law.max() / 2), 1, ids)",
            ),
        ),
        LAWS,
        law("rejection", CHAIN),
    ),
    Bug(
        "takes the likeliest token, declares a draw",
        "jaymody/speculative-sampling 3",
        (
            Edit(
                DRAFTING,
                "[noise.draft(row, self._first, index + i, law, 1, ids)[0] for i in range(width)]",
                "[int(law.argmax()) for i in range(width)]",
            ),
        ),
        LAWS,
        law("rejection", CHAIN),
    ),
    Bug(
        "takes the top k tokens, declares draws",
        "EAGLE-style trees with sampled rules",
        (
            Edit(
                DRAFTING,
                "noise.draft(row, self._first, index, law, width, ids)",
                "[int(t) for t in (-law).argsort()[:width]]",
            ),
        ),
        LAWS,
        law("recursive", OTHERS),
    ),
    Bug(
        "declares its law at another temperature",
        "unwarped q",
        (
            Edit(
                DRAFTING,
                "law if subset is None or self._coupled else subset.spread",
                "_law(law**0.5, False) if subset is None else subset.spread",
            ),
        ),
        LAWS,
        law("rejection", CHAIN),
    ),
    Bug(
        "drops a token after drawing it",
        "pruning by confidence, TETRIS; methods V10",
        (
            Edit(
                DRAFTING,
                "place in self._places(law, width, len(self._paths[node]))",
                "place in self._places(law * (law > 0.5 * law.max()), width, len(self._paths[node]))",
            ),
        ),
        LAWS,
        law("rejection", CHAIN),
    ),
    Bug(
        "draws with the target's noise under a rule that compares laws",
        "coupled drafts with a residual on the same stream",
        (
            Edit(
                DRAFTING,
                "noise.draft(row, self._first, index + i, law, 1, ids)",
                "noise.like_target(row, self._first + depth, law, 1, ids)",
            ),
            Edit(NOISES, "self.key(row, Lane.RESIDUAL, position)", "self.key(row, Lane.TARGET, position)"),
        ),
        (*LAWS, "-m", "prove", "-k", "hundred_thousand and rejection-drawn"),
        law("rejection", "markov:widths=1", tokens=400_000),
    ),
    Bug(
        "removes equal siblings",
        "de-duplicated trees; methods V5",
        (
            Edit(
                VERIFY,
                "return [child for child in range(node + 1, self._end) if parents[child] == node]",
                "found = [child for child in range(node + 1, self._end) if parents[child] == node]\n"
                "        return list({self._tokens[c]: c for c in reversed(found)}.values())[::-1]",
            ),
        ),
        ENUMERATION,
        law("recursive", WIDE, tokens=160_000),
    ),
    Bug(
        "siblings drawn without replacement checked as independent",
        None,
        (Edit(VERIFY, "if origin.drawn is Drawn.WITHOUT_REPLACEMENT:", "if False:"),),
        ENUMERATION,
        law("recursive", f"{WIDE},drawn=without_replacement", tokens=160_000),
    ),
    # Sampling controls.
    Bug(
        "controls for the first token of a step only",
        "vLLM 42802, SGLang 10617",
        (
            Edit(
                LAWFUL,
                "        if not controls.adjusts:\n",
                "        if not controls.adjusts or node not in self._draft.roots:\n",
            ),
        ),
        IDENTITY,
        MATCH,
    ),
    Bug(
        "penalties do not count the tokens of the draft",
        "penalties on the committed text only",
        (
            Edit(
                LAWFUL,
                "return controls.adjust(logits, position - self._view.prompts[row], self._path(row, node))",
                "return controls.adjust(logits, position - self._view.prompts[row], [])",
            ),
        ),
        IDENTITY,
        MATCH,
    ),
    Bug(
        "min_tokens counted from the step's start",
        "vLLM 21987",
        (
            Edit(
                LAWFUL,
                "controls.adjust(logits, position - self._view.prompts[row],",
                "controls.adjust(logits, len(self._view.histories[row]) - self._view.prompts[row],",
            ),
        ),
        IDENTITY,
        MATCH,
    ),
    Bug(
        "the target's scores edited in place",
        "vllm-ascend 2881",
        (Edit(LAWFUL, "adjusted = logits.copy()", "adjusted = logits"),),
        ("tests/unit/test_logprobs.py", "tests/unit/test_laws.py"),
        law("rejection", CHAIN, "--repetition-penalty 1.3"),
    ),
    Bug(
        "bad words do not see the draft",
        None,
        (Edit(LAWFUL, "self._bad_words.after(path)", "self._bad_words.after([])"),),
        IDENTITY,
        MATCH,
    ),
    Bug(
        "the grammar does not see the draft",
        "grammar checked for the first token of a step only",
        (Edit(LAWFUL, "self.matcher.after(path)", "self.matcher.after([])"),),
        IDENTITY,
        MATCH,
    ),
    Bug(
        "the grammar keeps the drafted tokens",
        "vLLM 9423, openvino.genai 4081",
        (Edit("paceline.grammar", "        state.rollback(taken)\n", ""),),
        IDENTITY,
        MATCH,
    ),
    Bug(
        "log-probabilities of the first row for every token of a step",
        "vLLM 30846, 33391",
        (
            Edit(
                SCHEDULER,
                "map(laws.logprobs, nodes, tokens, repeat(top))",
                "map(laws.logprobs, [nodes[0]] * len(tokens), tokens, repeat(top))",
            ),
        ),
        IDENTITY,
        MATCH,
    ),
    Bug(
        "log-probabilities that are all zero",
        "llama.cpp 27972",
        (
            Edit(
                "paceline.logprobs",
                "return TokenLogprobs(token, float(x[token])",
                "return TokenLogprobs(token, 0.0",
            ),
        ),
        ("tests/unit/test_logprobs.py",),
        MATCH,
    ),
    # Noise.
    Bug(
        "requests share one stream of noise",
        "TensorRT-LLM 19487",
        (Edit(NOISES, "_mix(self._seeds[row] + GOLDEN)", "_mix(self._seeds[0] + GOLDEN)"),),
        IDENTITY,
        MATCH,
    ),
    Bug(
        "noise of the step, not of the position",
        "seeds that depend on how many tokens a step brought",
        (
            Edit(
                LAWFUL,
                "position = int(self._draft.positions[node]) + 1",
                "position = int(self._draft.positions[self._draft.roots[row]]) + 1",
            ),
        ),
        IDENTITY,
        MATCH,
    ),
    # The cache and the tree.
    Bug(
        "the cache keeps a refused token",
        "mlx-lm 1109, 1427, 1486, 1528; openvino.genai 4190",
        (
            Edit(
                TABLES,
                "cache.extend(tokens[node] for node in path)",
                "cache.extend(tokens[node] for node in path)\n"
                "            cache[-1] = tokens[offsets[row + 1] - 1] if root >= 0 else cache[-1]",
            ),
        ),
        IDENTITY,
        MATCH,
    ),
    Bug(
        "the cache keeps the first nodes instead of the path",
        "tree compaction by slice",
        (
            Edit(
                TABLES,
                "cache.extend(tokens[node] for node in path)",
                "cache.extend(tokens[root + 1 + i] for i, _ in enumerate(path))",
            ),
        ),
        IDENTITY,
        f"{TABLE} --rule match --drafter {TREE} --tokens 20000",
    ),
    Bug(
        "a node sees its neighbour instead of its parent",
        "a chain's mask on a tree",
        (
            Edit(
                TABLES,
                "draft.tokens[draft.parents])",
                "draft.tokens[np.arange(len(draft.tokens)) - 1])",
            ),
        ),
        IDENTITY,
        f"{TABLE} --rule match --drafter {TREE} --tokens 20000",
    ),
    Bug(
        "positions count nodes, not depth",
        "position ids of a flattened tree",
        (Edit(CORE, "positions.append(positions[above] + 1)", "positions.append(positions[-1] + 1)"),),
        IDENTITY,
        f"{TABLE} --rule match --drafter {TREE} --tokens 20000",
    ),
    Bug(
        "where nothing is accepted, the neighbour's token",
        "vLLM 50021: index -1 after zero accepted",
        (
            Edit(
                SCHEDULER,
                "tokens.append(verdict.next_tokens[row])",
                "tokens.append(verdict.next_tokens[row if path else row - 1])",
            ),
        ),
        IDENTITY,
        MATCH,
    ),
    # Where answers end.
    Bug(
        "tokens after the ending token",
        "SGLang 31599, 33758; onnxruntime-genai 2528",
        (Edit(REQUEST, "                del tokens[place + 1 :]\n", ""),),
        IDENTITY,
        MATCH,
    ),
    Bug(
        "more tokens than max_tokens",
        "vLLM 41768, 32642",
        (Edit(SCHEDULER, "depth = request.limit - len(request.history) - 1", "depth = request.limit"),),
        IDENTITY,
        MATCH,
    ),
    Bug(
        "stop strings looked for at the end of a step only",
        "koboldcpp 1276",
        (
            Edit(
                TRANSCRIPT,
                "for used, token in enumerate(tokens, 1):",
                "for used, token in [(len(tokens), tokens[-1])]:",
            ),
        ),
        ("tests/unit/test_transcript.py",),
        MATCH,
    ),
)
