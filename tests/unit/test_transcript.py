"""Stop strings are found wherever they fall, and no text is shown that a stop string would cut."""

from __future__ import annotations

import random

from paceline.transcript import Transcript
from tests.toys import Letters


class Pieces:
    """Each token is a piece of text."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def push(self, token_ids: list[int]) -> str:
        return "".join(self.pieces[token] for token in token_ids)

    def finish(self) -> str:
        return ""


def by_hand(pieces: list[str], stops: tuple[str, ...], min_tokens: int) -> tuple[str, int, str | None]:
    """Character by character: shown text, tokens read and stop string."""
    text = ""
    for used, piece in enumerate(pieces, 1):
        for letter in piece:
            text += letter
            ended = [stop for stop in stops if text.endswith(stop)]
            if ended and used >= min_tokens:
                longest = max(ended, key=len)
                return text.removesuffix(longest), used, longest
    return text, len(pieces), None


def test_any_split_into_tokens_and_steps_gives_the_text_up_to_the_first_stop() -> None:
    rng = random.Random(1)
    stopped = 0
    for _ in range(4000):
        pieces = [
            "".join(rng.choice("ab") for _ in range(rng.randint(0, 3))) for _ in range(rng.randint(1, 8))
        ]
        stops = tuple(
            "".join(rng.choice("ab") for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 3))
        )
        least = rng.choice([0, 0, 3])
        transcript = Transcript(Pieces(pieces), stops, least)
        shown, read, stop = "", 0, None
        while read < len(pieces) and stop is None:
            count = rng.randint(1, 3)
            heard = transcript.push(range(read, min(read + count, len(pieces))))
            shown, read, stop = shown + heard.text, read + heard.used, heard.stop
            expected = by_hand(pieces, stops, least)
            assert expected[0].startswith(shown)
        if stop is None:
            shown += transcript.finish().text
        else:
            stopped += 1
        assert (shown, read, stop) == expected
        assert transcript.text == shown
    assert 500 < stopped < 3500


def test_text_that_may_begin_a_stop_string_waits_and_comes_when_it_does_not() -> None:
    transcript = Transcript(Pieces(["one ", "st", "op", "st", "ay"]), ("stopper",), 0)
    assert [transcript.push([token]).text for token in range(5)] == ["one ", "", "", "stop", "stay"]


def test_a_stop_string_in_the_text_held_back_to_the_end_still_counts() -> None:
    transcript = Transcript(Letters().detokenizer(), ("bf",), 0)
    assert transcript.push([2, 1, 5]).text == "c"
    assert transcript.finish() == ("", 0, "bf")
    assert transcript.text == "c"


def test_without_a_detokenizer_there_is_no_text() -> None:
    transcript = Transcript(None, (), 0)
    assert transcript.push([1, 2]) == ("", 2, None)
    assert transcript.finish() == ("", 0, None)


def test_a_stop_string_that_comes_too_early_to_count_is_shown_at_once() -> None:
    transcript = Transcript(Pieces(["xab", "a", "yab"]), ("ab",), 3)
    assert transcript.push([0]).text == "xab"
    assert transcript.push([1]).text == ""  # "a" may go on as "ab"
    heard = transcript.push([2])
    assert (heard.text, heard.stop) == ("ay", "ab")
