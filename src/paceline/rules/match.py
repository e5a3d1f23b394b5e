"""Keep drafted tokens while they are the ones that the target draws itself.

At every node the target draws its own token, with noise keyed by the request's seed and the position, and
the walk follows the child that holds it. What is emitted is therefore what plain decoding would have
emitted, token for token, whatever was drafted, at any temperature and for any tree.
"""

from __future__ import annotations

from paceline.core import Draft, Verdict
from paceline.laws import Laws
from paceline.noise import Noise


def match(draft: Draft, laws: Laws, noise: Noise) -> Verdict:
    """Follow the target's own draws down every row's tree; of equal siblings the first counts."""
    tokens, parents, offsets = draft.tokens.tolist(), draft.parents.tolist(), draft.offsets.tolist()
    paths: list[list[int]] = []
    next_tokens: list[int] = []
    for row, root in enumerate(draft.roots):
        path: list[int] = []
        drawn = -1
        if root >= 0:
            node, drawn = root, laws.draw(root, noise)
            for child in range(root + 1, offsets[row + 1]):  # a child comes after its parent
                if parents[child] == node and tokens[child] == drawn:
                    path.append(child)
                    node, drawn = child, laws.draw(child, noise)
        paths.append(path)
        next_tokens.append(drawn)
    return Verdict(paths, next_tokens)
