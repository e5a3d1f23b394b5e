"""Rules with one mistake each, as other engines have had them. The proofs must find every one."""

from __future__ import annotations

from array_api_compat import array_namespace

from paceline.core import Array, Drawn, Promise
from paceline.rules._residual import capped, excess, regained, residual
from paceline.verify import Outcome, Row, RowRule, rule

BROKEN: dict[str, RowRule] = {}
"""{name: rule}."""
ONE_LAW = frozenset({Drawn.IID, Drawn.WITHOUT_REPLACEMENT})


def broken(made: RowRule) -> RowRule:
    BROKEN[made.name] = made
    return made


def down(row: Row, refused: object, accepted: object = None, last: object = None) -> Outcome:
    """`recursive`, with another law after a refusal, another coin, or another law at the end."""
    path: list[int] = []
    node, p = row.root, row.law(row.root)
    accepted = accepted or (lambda child, p, q: row.accepts(child, p[row.token(child)], q[row.token(child)]))
    while children := row.children(node):
        for child in children:
            q = row.proposal(child)
            if accepted(child, p, q):  # type: ignore[operator]
                path.append(child)
                node, p = child, row.law(child)
                break
            p = refused(node, child, p, q)  # type: ignore[operator]
        else:
            return path, row.draw(p)
    return path, row.draw(last(node) if last else p)  # type: ignore[operator]


def after(node: int, child: int, p: Array, q: Array) -> Array:
    return residual(p, q)


@broken
@rule(Promise.LAW)
def draws_from_the_target_after_a_refusal(row: Row) -> Outcome:
    return down(row, lambda node, child, p, q: row.law(node))


@broken
@rule(Promise.LAW, takes=ONE_LAW)
def only_leaves_out_the_refused_token(row: Row) -> Outcome:
    def without(node: int, child: int, p: Array, q: Array) -> Array:
        ids = array_namespace(p).arange(p.shape[0])
        rest = array_namespace(p).where(ids == row.token(child), 0.0, p)
        return rest / rest.sum() if rest.sum() > 0 else p

    return down(row, without)


@broken
@rule(Promise.LAW)
def does_not_normalise_the_residual(row: Row) -> Outcome:
    def raw(node: int, child: int, p: Array, q: Array) -> Array:
        rest, mass = excess(p, q)
        return rest if mass > 0 else p

    return down(row, raw)


@broken
@rule(Promise.LAW)
def takes_the_residual_of_the_first_law_always(row: Row) -> Outcome:
    return down(row, lambda node, child, p, q: residual(row.law(node), q))


@broken
@rule(Promise.LAW)
def residual_of_the_row_below(row: Row) -> Outcome:
    return down(row, lambda node, child, p, q: residual(row.law(child), q))


@broken
@rule(Promise.LAW)
def skips_equal_siblings(row: Row) -> Outcome:
    tried: set[tuple[int, int]] = set()

    def new(child: int, p: Array, q: Array) -> bool:
        x = row.token(child)
        if (row.parent(child), x) in tried:
            return False
        tried.add((row.parent(child), x))
        return row.accepts(child, p[x], q[x])

    seen: set[tuple[int, int]] = set()

    def rest(node: int, child: int, p: Array, q: Array) -> Array:
        known = (node, row.token(child)) in seen
        seen.add((node, row.token(child)))
        return p if known else residual(p, q)

    return down(row, rest, new)


@broken
@rule(Promise.LAW, takes=ONE_LAW)
def accepts_if_the_target_draws_the_same_then_takes_the_residual(row: Row) -> Outcome:
    return down(row, after, lambda child, p, q: row.own(row.parent(child)) == row.token(child))


@broken
@rule(Promise.LAW)
def accepts_the_likeliest_token_always(row: Row) -> Outcome:
    def accepted(child: int, p: Array, q: Array) -> bool:
        x = row.token(child)
        return p[x] == p.max() or row.accepts(child, p[x], q[x])

    return down(row, after, accepted)


@broken
@rule(Promise.LAW)
def accepts_five_per_cent_more_readily(row: Row) -> Outcome:
    return down(
        row, after, lambda child, p, q: row.accepts(child, 1.05 * p[row.token(child)], q[row.token(child)])
    )


@broken
@rule(Promise.LAW)
def throws_one_coin_for_all_tokens(row: Row) -> Outcome:
    first = row.root + 1
    return down(row, after, lambda child, p, q: row.accepts(first, p[row.token(child)], q[row.token(child)]))


@broken
@rule(Promise.LAW)
def siblings_share_one_coin(row: Row) -> Outcome:
    def accepted(child: int, p: Array, q: Array) -> bool:
        x = row.token(child)
        return row.accepts(row.children(row.parent(child))[0], p[x], q[x])

    return down(row, after, accepted)


@broken
@rule(Promise.LAW)
def last_token_from_the_law_above(row: Row) -> Outcome:
    return down(row, after, last=lambda node: row.law(node if node == row.root else row.parent(node)))


@broken
@rule(Promise.LAW, takes=ONE_LAW)
def last_token_from_the_drafter(row: Row) -> Outcome:
    return down(row, after, last=lambda node: row.law(node) if node == row.root else row.proposal(node))


@broken
@rule(Promise.LAW)
def never_tries_a_second_child_but_takes_its_residual(row: Row) -> Outcome:
    return down(
        row,
        after,
        lambda child, p, q: (
            child == row.children(row.parent(child))[0]
            and row.accepts(child, p[row.token(child)], q[row.token(child)])
        ),
    )


def blockwise(row: Row, *, early: bool = False, plain: bool = False, capping: bool = True) -> Outcome:
    chain = row.chain()
    p = [row.law(node) for node in (row.root, *chain)]
    q = [row.proposal(node) for node in chain]
    joint = [1.0]
    for i, node in enumerate(chain):
        above = joint[i] if capping else 1.0
        joint.append(capped(above * float(p[i][row.token(node)]), float(q[i][row.token(node)])))
    kept = 0
    for i in range(1, len(chain) + 1):
        h = joint[i]
        if i < len(chain):
            h = regained(excess(joint[i] * p[i], q[i])[1], joint[i])
        if row.accepts(chain[i - 1], h, 1.0):
            kept = i
        elif early:
            break
    if kept == len(chain):
        return chain, row.draw(p[kept])
    rest, mass = excess(p[kept] if plain else joint[kept] * p[kept], q[kept])
    return chain[:kept], row.draw(rest if mass > 0 else p[kept])


@broken
@rule(Promise.LAW, trees=False)
def block_that_stops_at_the_first_refusal(row: Row) -> Outcome:
    return blockwise(row, early=True)


@broken
@rule(Promise.LAW, trees=False)
def block_with_the_residual_of_one_token(row: Row) -> Outcome:
    return blockwise(row, plain=True)


@broken
@rule(Promise.LAW, trees=False)
def block_that_forgets_the_tokens_before(row: Row) -> Outcome:
    return blockwise(row, capping=False)


def sequences(
    row: Row, *, law_kept: bool = False, share_kept: bool = False, top_down: bool = False
) -> Outcome:
    """`traversal`, with something not given back after a refusal."""
    path = [[row.root, 1.0, row.law(row.root), row.children(row.root)]]
    while True:
        node, share, law, untried = path[-1]
        if untried:
            child = untried.pop(0)
            x, q = row.token(child), row.proposal(child)
            below = capped((1.0 if top_down else share) * float(law[x]), float(q[x]))
            path.append([child, below, row.law(child), row.children(child)])
        elif node == row.root or row.accepts(node, share, 1.0):
            return [stop[0] for stop in path[1:]], row.draw(law)
        else:
            path.pop()
            above = path[-1]
            rest, mass = excess(above[1] * above[2], row.proposal(node))
            if not share_kept:
                above[1] = regained(mass, above[1])
            if not law_kept and mass > 0:
                above[2] = rest / mass


@broken
@rule(Promise.LAW)
def traversal_that_keeps_the_law(row: Row) -> Outcome:
    return sequences(row, law_kept=True)


@broken
@rule(Promise.LAW)
def traversal_that_keeps_the_share(row: Row) -> Outcome:
    return sequences(row, share_kept=True)


@broken
@rule(Promise.LAW)
def traversal_that_forgets_the_tokens_before(row: Row) -> Outcome:
    return sequences(row, top_down=True)


@broken
@rule(Promise.LAW, takes=frozenset({Drawn.IID}))
def kseq_with_rho_one(row: Row) -> Outcome:
    """Accepts like `rejection`, but takes the residual only once, after all refusals."""
    path: list[int] = []
    node, p = row.root, row.law(row.root)
    while children := row.children(node):
        q = row.proposal(children[0])
        for child in children:
            if row.accepts(child, p[row.token(child)], q[row.token(child)]):
                path.append(child)
                node, p = child, row.law(child)
                break
        else:
            return path, row.draw(residual(p, q))
    return path, row.draw(p)
