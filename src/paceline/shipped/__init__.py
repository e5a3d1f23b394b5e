"""Datastores that come with the package: answers of known models, for `auto` to draft from.

Each is called by the fingerprint of the tokenizer it was made with; docs/shipped.md says what it is and how
it was made.
"""

from __future__ import annotations

from pathlib import Path

from paceline.core import TargetInfo


def find(info: TargetInfo) -> Path | None:
    """The datastore for the tokens of this target; None if there is none."""
    path = Path(__file__).parent / f"{info.vocabulary}.pls"
    return path if info.vocabulary and path.is_file() else None
