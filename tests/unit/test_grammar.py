"""Grammars: what is refused, what a matcher allows, and where an answer under a grammar ends."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from paceline import grammar as grammar_part
from paceline.core import NOTHING, Budget, Drawn, Tree, View
from paceline.drafters.markov import Markov
from paceline.drafters.none import Plain
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.grammar import Grammar, GrammarLimit, Grammars
from paceline.laws import Controls
from paceline.results import Completion
from paceline.router import Router
from paceline.rules import load as load_rule
from paceline.rules.match import match
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from paceline.verify import Outcome, Row, rule
from tests.toys import VOCABULARY, Empty, Letters, Quiet, trusting

GRAMMARS = Grammars(Letters(), VOCABULARY, {0})

REFUSED: dict[str, tuple[Any, str]] = {
    "schema: no JSON": (lambda: Grammar.json_schema("{"), "the JSON schema is not JSON: Expecting"),
    "schema: a list": (lambda: Grammar.json_schema("[1]"), "must be an object, got '\\[1\\]'"),
    "schema: a set in it": (lambda: Grammar.json_schema({"a": {1}}), "the JSON schema is not JSON"),
    "schema: NaN": (lambda: Grammar.json_schema('{"const": NaN}'), "the JSON schema cannot be used"),
    "schema: wrong type": (lambda: Grammar.json_schema({"type": 1}), "cannot be used: type must be a string"),
    "schema: contradiction": (
        lambda: Grammar.json_schema({"type": "integer", "minimum": 2, "maximum": 1}), "Unsatisfiable",
    ),
    "schema: 33 deep": (
        lambda: Grammar.json_schema('{"items":' * 32 + "{}" + "}" * 32), "nested 33 deep, allowed are 32",
    ),
    "schema: lists deep": (
        lambda: Grammar.json_schema('{"a":' + "[" * 32 + "]" * 32 + "}"), "nested 33 deep",
    ),
    "schema: 900 deep": (lambda: Grammar.json_schema('{"a":' * 900 + "1" + "}" * 900), "nested .* deep"),
    "schema: 10000 deep": (
        lambda: Grammar.json_schema('{"a":' * 10000 + "1" + "}" * 10000), "nested too deep",
    ),
    "schema: too large": (
        lambda: Grammar.json_schema({"enum": ["x" * 70_000]}), "has 70\\d\\d\\d bytes, allowed are 65536",
    ),
    "regex: syntax": (lambda: Grammar.regex("a["), "regular expression cannot be used: unclosed character"),
    "regex: no text": (lambda: Grammar.regex(5), "the regular expression must be text, got 5"),
    "regex: too large": (lambda: Grammar.regex("é" * 32769), "has 65538 bytes, allowed are 65536"),
    "regex: no Unicode": (lambda: Grammar.regex("\ud800"), "cannot be used"),
    "lark: unknown rule": (lambda: Grammar.lark("start: foo"), "the grammar cannot be used: .*unknown name"),
    "lark: empty": (lambda: Grammar.lark(""), "the grammar cannot be used: Empty grammar"),
    "params: no grammar": (lambda: SamplingParams(grammar="[a]"), "grammar must be a paceline.Grammar"),
    "params: min_tokens": (
        lambda: SamplingParams(grammar=Grammar.regex("b"), min_tokens=1), "min_tokens must be 0",
    ),
    "params: ignore_eos": (
        lambda: SamplingParams(grammar=Grammar.regex("b"), ignore_eos=True), "ignore_eos must be False",
    ),
    "model: cannot write it": (lambda: GRAMMARS.matcher(Grammar.regex("xyz")), "the grammar cannot be used"),
    "model: nothing fits": (
        lambda: GRAMMARS.matcher(Grammar.json_schema({"$ref": "#"})), "the grammar cannot be used",
    ),
    "model: no end": (
        lambda: Grammars(Letters(), VOCABULARY, ()).matcher(Grammar.regex("b")), "end-of-sequence token",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_honoured_is_refused_in_one_line(what: str) -> None:
    attempt, words = REFUSED[what]
    with pytest.raises(ConfigError, match=words) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_the_largest_and_deepest_schema_is_taken() -> None:
    assert Grammar.json_schema('{"items":' * 31 + "{}" + "}" * 31).kind == "json_schema"
    assert Grammar.regex("b" * 65536).source == "b" * 65536
    assert Grammar.json_schema({"type": "object"}).source == Grammar.json_object().source


def test_without_the_package_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r'pip install "paceline\[grammar\]"'):
        Grammar.regex("a")


def allowed(matcher: grammar_part.Matcher, *path: int) -> list[int]:
    mask = matcher.after(path)
    assert mask is not None
    return [*mask.texts.nonzero()[0].tolist(), *(["end"] if mask.complete else [])]


def test_a_matcher_looks_down_a_path_and_comes_back() -> None:
    matcher = GRAMMARS.matcher(Grammar.regex("b(cd)*e?"))
    for _ in range(2):
        assert allowed(matcher) == [1]
        assert allowed(matcher, 1) == [2, 4, "end"]
        assert allowed(matcher, 1, 2) == [3]
        assert allowed(matcher, 1, 2, 3, 4) == ["end"]
        assert matcher.after((2,)) is None
        assert matcher.after((1, 2, 2)) is None
        assert matcher.after((1, 4, 4)) is None
    assert matcher.advance([1, 2, 3]) == (3, False)
    assert allowed(matcher) == [2, 4, "end"]
    assert allowed(matcher, 2) == [3]
    assert matcher.advance([4, 1]) == (1, True)
    assert matcher.failure is None


def test_a_committed_token_outside_the_grammar_is_a_failure_that_says_so() -> None:
    matcher = GRAMMARS.matcher(Grammar.regex("bcd"))
    assert matcher.advance([1, 5]) == (1, False)
    assert matcher.failure


def test_only_tokens_that_stand_for_text_spell_an_answer() -> None:
    class Odd(Letters):
        """Token 3 has no text, token 4 spells what the end token is called, the others do not exist."""

        def piece(self, token_id: int) -> bytes:
            return {3: b"", 4: b"[0]"}.get(token_id, super().piece(token_id))

    matcher = Grammars(Odd(6), VOCABULARY, {0}).matcher(Grammar.regex(r"(.|\n|\[0\])*"))
    assert allowed(matcher) == [1, 2, 4, 5, "end"]


class Limited:
    """A matcher's state that gives up once it has looked behind token 2."""

    def __init__(self, state: Any) -> None:
        self.state, self.taken, self.broken = state, 0, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.state, name)

    def compute_bitmask(self) -> bytes:
        self.broken = self.broken or self.taken == 2
        return self.state.compute_bitmask()

    def try_consume_tokens(self, tokens: list[int]) -> int:
        self.taken = tokens[-1]
        return self.state.try_consume_tokens(tokens)

    def consume_token(self, token: int) -> bool:
        self.taken = token
        return self.state.consume_token(token)

    def consume_tokens(self, tokens: list[int]) -> bool:
        return self.state.consume_tokens(tokens)

    def rollback(self, count: int) -> bool:
        self.taken = self.taken if not count else 0
        return self.state.rollback(count)

    def is_error(self) -> bool:
        return self.broken

    def get_error(self) -> str:
        return "too much\nof it all"


def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    original = grammar_part.Matcher.__init__
    monkeypatch.setattr(
        grammar_part.Matcher,
        "__init__",
        lambda self, begin, spoken: original(self, lambda: Limited(begin()), spoken),
    )


def test_a_limit_met_on_a_path_is_told_and_leaves_other_paths_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch)
    matcher = GRAMMARS.matcher(Grammar.regex("b+(c|d)b*"))
    assert matcher.advance([1]) == (1, False)
    for _ in range(2):
        with pytest.raises(GrammarLimit, match=r"^too much$"):
            matcher.after((2,))
        assert allowed(matcher, 3) == [1, "end"]
        assert allowed(matcher) == [1, 2, 3]
    assert matcher.advance([2]) == (1, False), "whether it is complete cannot be told"


def answer(
    grammar: Grammar, drafter: Any = None, *, rule: Any = match, tokenizer: Any = None, **fields: Any
) -> Completion:
    drafters = {"d": drafter or Plain()}
    engine = Engine(
        TableTarget(VOCABULARY), drafters, drafter="d", tokenizer=tokenizer or Letters(), rule=rule
    )
    return engine.generate([1, 2], SamplingParams(grammar=grammar, **{"seed": 1, **fields}))[0]


@pytest.mark.parametrize("drafter", [Plain, Empty], ids=["plain", "forced"])
@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_an_answer_is_a_whole_text_of_the_grammar(temperature: float, drafter: Any) -> None:
    for seed in range(30):
        done = answer(Grammar.regex("(bcd|efgh){2,3}|k+"), drafter(), seed=seed, temperature=temperature)
        if done.finish_reason == "length":
            assert set(done.text) == {"k"}
            continue
        assert done.finish_reason == "stop"
        if done.text.startswith("k"):
            assert done.stop_reason == 0, "it could go on, so the model ended it"
        elif len(done.text.replace("bcd", "e").replace("efgh", "e")) == 3:
            assert done.stop_reason is None, "nothing can follow, so nothing is asked"
        assert set(done.text.replace("bcd", "").replace("efgh", "")) <= {"k"}


def test_stop_tokens_stop_strings_and_the_length_may_cut_an_answer_short() -> None:
    grammar = Grammar.regex("bcde(fgh)+")
    assert answer(grammar, stop=["cd"]).text == "b"
    assert answer(grammar, stop_token_ids=[3]).text == "bc"
    assert answer(grammar, stop=["cd"]).stop_reason == "cd"
    cut = answer(grammar, max_tokens=3)
    assert (cut.text, cut.finish_reason) == ("bcd", "length")
    whole = answer(Grammar.regex("bcd"), max_tokens=3)
    assert (whole.text, whole.finish_reason, whole.stop_reason) == ("bcd", "stop", None)
    assert answer(Grammar.regex("bcd"), stop=["d"]).stop_reason == "d"


def test_a_stop_token_that_is_no_text_is_allowed_where_the_answer_may_end() -> None:
    class Quieter(Letters):
        def piece(self, token_id: int) -> bytes:
            return b"" if token_id == 7 else super().piece(token_id)

    endings = set()
    for seed in range(20):
        done = answer(
            Grammar.regex("(bc)+"), tokenizer=Quieter(), seed=seed, stop_token_ids=[7], logit_bias={7: 2}
        )
        endings.add(done.stop_reason)
        assert done.text == "bc" * (len(done.text) // 2) != ""
    assert endings >= {0, 7}


def test_an_empty_answer_can_be_a_whole_one() -> None:
    done = answer(Grammar.regex("b?"), logit_bias={0: 100})
    assert (done.text, done.token_ids, done.stop_reason) == ("", (0,), 0)


@pytest.mark.parametrize("drafter", [Plain, Empty], ids=["plain", "forced"])
def test_where_the_controls_leave_no_token_the_answer_is_given_up_with_the_reason(drafter: Any) -> None:
    done = answer(Grammar.regex("bcdef"), drafter(), bad_words=["de"], logprobs=0)
    assert (done.text, done.finish_reason) == ("bcd", "cancelled")
    assert "leave no token" in str(done.stop_reason)
    assert len(done.logprobs) == len(done.token_ids) == 3
    first = answer(Grammar.regex("bcdef"), drafter(), bad_words=["b"])
    assert (first.token_ids, first.finish_reason) == ((), "cancelled")
    assert first.stats.tau == 0


def test_a_dead_end_that_a_rule_looked_at_and_did_not_reach_ends_nothing() -> None:
    @rule(match.promise, takes=match.takes)
    def curious(row: Row) -> Outcome:
        """Asks for the law after every node, and keeps no draft."""
        for node in row.children(row.root):
            row.law(node)
        return [], row.own(row.root)

    class Wrong(Quiet):
        def propose(self, view: View, budgets: Any) -> list[Tree]:
            return [Tree.chain([4]) if min(budget) else NOTHING for budget in budgets]

    # Behind token 4, "e", nothing is possible, and it is never drawn.
    fields: dict[str, Any] = {"bad_words": ["ef"], "logit_bias": {4: -100}, "max_tokens": 30}
    done = answer(Grammar.regex("[bc]+(ef|g)"), Wrong(), rule=curious, **fields)
    assert done.finish_reason == "length" or done.text.endswith("g")
    assert len(done.text) > 1
    assert done.stats.drafted > done.stats.accepted == 0


@pytest.mark.parametrize("drafter", [Plain, Empty], ids=["plain", "forced"])
def test_a_grammar_that_becomes_too_complex_ends_its_own_answer_only(
    drafter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch)
    done = answer(Grammar.regex("bcde"), drafter())
    assert (done.text, done.finish_reason) == ("bc", "cancelled")
    assert "too complex to go on: too much" in str(done.stop_reason)


def test_a_rule_that_keeps_what_the_grammar_forbids_ends_the_answer_and_not_the_engine() -> None:
    class Wrong(Quiet):
        def propose(self, view: View, budgets: Any) -> list[Tree]:
            return [Tree.chain([5, 5]) if min(budget) > 1 else NOTHING for budget in budgets]

    done = answer(Grammar.regex("b[cd][ce]+"), Wrong(), rule=trusting)
    assert done.finish_reason == "cancelled"
    assert done.stop_reason


def test_without_a_tokenizer_there_are_no_grammars() -> None:
    engine = Engine(TableTarget(VOCABULARY), {"d": Plain()}, drafter="d", eos_ids=frozenset({0}))
    with pytest.raises(ConfigError, match="grammars need a tokenizer"):
        engine.submit([1], SamplingParams(grammar=Grammar.regex("b")))


class Wide(Quiet):
    """Always the same tree."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.budgets: list[Budget] = []

    def propose(self, view: View, budgets: Any) -> list[Tree]:
        self.budgets += budgets
        return [self.tree if min(budget) else NOTHING for budget in budgets]


def view(*matchers: grammar_part.Matcher | None, coupled: bool = True) -> View:
    rows = len(matchers)
    controls = [Controls(SamplingParams(), {0}, [1, 2], (), matcher) for matcher in matchers]
    return View(
        range(rows), [[1, 2]] * rows, [1] * rows, [2] * rows, controls, [0] * rows, [1] * rows, ["d"] * rows,
        coupled=coupled,
    )  # fmt: skip


TREE = Tree([1, 5, 2, 3, 9, 4, 8], [-1, -1, 0, 2, 3, 3, 1])


@pytest.mark.parametrize(
    ("nodes", "tokens", "parents"),
    [
        (2, [1, 2], [-1, 0]),
        (4, [1, 2, 3, 5], [-1, 0, 1, -1]),
        (9, [1, 2, 3, 5, 9, 4, 8], [-1, 0, 1, -1, 2, 2, 3]),
        (6, [1, 2, 3, 5, 9, 4], [-1, 0, 1, -1, 2, 2]),
    ],
)
def test_forced_tokens_stand_in_front_of_the_drafters_tree(
    nodes: int, tokens: list[int], parents: list[int]
) -> None:
    matcher = GRAMMARS.matcher(Grammar.regex("bcd(e|j)"))
    router = Router({"d": Wide(TREE)}, VOCABULARY, match)
    tree, free = router.propose(view(matcher, None), [Budget(nodes, 9), Budget(3, 9)])
    assert (list(tree.tokens), list(tree.parents)) == (tokens, parents)
    assert list(free.tokens) == [1, 5, 2]
    assert allowed(matcher) == [1], "looking ahead moved nothing"


def test_a_tree_that_is_cut_loses_what_hangs_below() -> None:
    matcher = GRAMMARS.matcher(Grammar.regex("bcd(e|j)"))
    off = Tree([6, 7, 8], [-1, 0, 1])
    tree = Router({"d": Wide(off)}, VOCABULARY, match).propose(view(matcher), [Budget(4, 9)])[0]
    assert (list(tree.tokens), list(tree.parents)) == ([1, 2, 3, 6], [-1, 0, 1, -1])


def test_under_a_rule_that_compares_laws_forced_tokens_stand_alone() -> None:
    matcher = GRAMMARS.matcher(Grammar.regex("bcd(e|j)"))
    drafter = Wide(Tree([5], [-1]))
    router = Router({"d": drafter}, VOCABULARY, load_rule("recursive"))
    forced, free = router.propose(view(matcher, None, coupled=False), [Budget(8, 2), Budget(8, 8)])
    assert (list(forced.tokens), forced.origins) == ([1, 2], {})
    assert list(free.tokens) == [5]
    assert drafter.budgets == [Budget(0, 0), Budget(8, 8)]


def test_nothing_is_forced_on_plain_decoding_on_a_row_without_budget_or_on_a_rule_that_refuses_it() -> None:
    matcher = GRAMMARS.matcher(Grammar.regex("bcd(e|j)"))
    for drafter, budget, picky in (
        (Plain(), Budget(8, 8), match),
        (Empty(), Budget(0, 8), match),
        (
            Empty(),
            Budget(8, 8),
            replace(match, takes=frozenset({Drawn.IID})),
        ),
    ):
        router = Router({"d": drafter}, VOCABULARY, picky)
        assert router.propose(view(matcher), [budget])[0] == NOTHING
    open_choice = GRAMMARS.matcher(Grammar.regex("b|c"))
    assert Router({"d": Empty()}, VOCABULARY, match).propose(view(open_choice), [Budget(8, 8)])[0] == NOTHING


@pytest.mark.parametrize("drawn", [Drawn.IID, Drawn.WITHOUT_REPLACEMENT])
def test_a_rule_that_compares_laws_keeps_to_the_grammar_too(drawn: Drawn) -> None:
    drafted = accepted = 0
    for seed in range(60):
        done = answer(
            Grammar.regex("(bcd|[e-j]{2})+k"), Markov(VOCABULARY, [2, 2], drawn), rule=load_rule("recursive"),
            seed=seed, max_tokens=40,
        )  # fmt: skip
        drafted += done.stats.drafted
        accepted += done.stats.accepted
        assert done.finish_reason == "length" or done.text.endswith("k")
        assert set(done.text.replace("bcd", "")) <= set("efghijk")
    assert 0 < accepted < drafted
