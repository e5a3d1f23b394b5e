"""Earlier answers kept in a file, from one run of the program to the next."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from paceline.core import TargetInfo
from paceline.errors import TokenFileError
from paceline.stores.token_file import DamagedFile, TokenFile

KIND = "store of answers"
BOUNDARY = -1  # stands behind each answer
SAVED_EVERY = 60.0
"""Seconds. Saving waits for the disk, so it is not done for every answer."""


class AnswersFile:
    """The file, and when it is written: when answers come, at most once in SAVED_EVERY seconds, and at the
    end (`close`). Of two programs that share a file, the one that writes last keeps its answers.

    A file that is damaged is given up with a warning and written anew; one that is something else, or of
    another tokenizer, raises TokenFileError and stays as it is.
    """

    def __init__(self, path: Path, info: TargetInfo, answers: Callable[[], Iterable[Sequence[int]]]) -> None:
        """answers: all that is to be kept, oldest first."""
        self._path = path
        self._info = info
        self._answers = answers
        self._saved_at = time.monotonic()
        self._changed = False

    def read(self) -> list[list[int]]:
        """The answers in the file, oldest first; none if there is no file."""
        if not self._path.exists():
            return []
        try:
            file = TokenFile.read(self._path, KIND)
        except DamagedFile as error:
            warnings.warn(f"{error}; starting without earlier answers", RuntimeWarning, stacklevel=2)
            return []
        file.check(self._path, self._info)
        tokens = file.arrays["tokens"]
        ends = np.flatnonzero(tokens == BOUNDARY)
        return [answer[answer != BOUNDARY].tolist() for answer in np.split(tokens, ends)]

    def changed(self) -> None:
        """There are new answers: write them, unless the last time was just now."""
        self._changed = True
        if time.monotonic() - self._saved_at >= SAVED_EVERY:
            self.close()

    def close(self) -> None:
        """Write what is new. A disk that does not take it is a warning: answers come all the same."""
        if not self._changed:
            return
        self._changed = False
        tokens = [token for answer in self._answers() for token in (*answer, BOUNDARY)]
        info = self._info
        file = TokenFile(KIND, info.vocabulary, info.name, {}, {"tokens": np.array(tokens, np.int32)})
        try:
            file.write(self._path)
        except TokenFileError as error:
            warnings.warn(f"answers were not kept: {error}", RuntimeWarning, stacklevel=2)
        self._saved_at = time.monotonic()
