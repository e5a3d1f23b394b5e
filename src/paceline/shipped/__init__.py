"""What comes with the package for known models: datastores of their answers, and drafters that were trained
for them, for `auto` to draft with. docs/shipped.md says what they are and how they were made.
"""

from __future__ import annotations

from pathlib import Path

from paceline.core import TargetInfo

_HERE = Path(__file__).parent


def datastore(info: TargetInfo) -> Path | None:
    """The datastore for the tokens of this target, called by the fingerprint of the tokenizer; None if there
    is none."""
    path = _HERE / f"{info.vocabulary}.pls"
    return path if info.vocabulary and path.is_file() else None


def trained(info: TargetInfo) -> Path | None:
    """The folder of the drafter that `auto` uses for targets with these tokens and so many layers; None if
    there is none."""
    path = _HERE / f"{info.vocabulary}-{info.layers}-redrafter"
    return path if info.vocabulary and path.is_dir() else None
