"""From token ids to text, piece by piece."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

_DECODER = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Turns a growing list of tokens into text; all pieces together are the text of all tokens.

    A character whose bytes are spread over several tokens appears once, whole; bytes that can never become
    a character appear as U+FFFD.

    piece        the bytes that a token id stands for
    skip_space   whether a space at the very start belongs to the tokenizer and not to the text
    """

    def __init__(self, piece: Callable[[int], bytes], *, skip_space: bool = False) -> None:
        self._piece = piece
        self._decoder = _DECODER(errors="replace")
        self._skip_space = skip_space

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; it never changes later."""
        data = b"".join(map(self._piece, token_ids))
        if self._skip_space and data:
            self._skip_space = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)
