"""How often the sequential test of `paceline audit` is wrong about exact streams; how soon it finds others.

    python benchmarks/sequential_test.py

Simulated, token by token where order matters. A stream is cut into looks; after every look the e-value is
worked out, and the stream is called false once it reaches 1 / alpha. Exact streams: tokens of a law of 8, put
into bins under four orders, whose bins depend on one another as in an audit. False streams: one order shows
the bias, the others see nothing, nor does any echo.
"""

from __future__ import annotations

import argparse
import json
import math

import numpy as np
from numpy.typing import NDArray

from paceline.audit.orders import NAMES
from paceline.audit.sequential import BINS, MEMORY, QUARTILES, log_e_values, log_mean, smallest_caught

BIN_COUNT = BINS[-1]
PARTS = len(QUARTILES) + 1
LAW = np.array([0.35, 0.2, 0.15, 0.1, 0.08, 0.06, 0.04, 0.02])
ORDERS = (
    (0, 1, 2, 3, 4, 5, 6, 7),
    (3, 0, 1, 2, 4, 5, 6, 7),
    (7, 6, 5, 4, 3, 2, 1, 0),
    (2, 7, 0, 5, 1, 6, 3, 4),
)
NEVER = 10**9
SHAPES = ("the likeliest token gains", "a middling token gains", "the rarest token gains", "halves")


def bins_of(
    law: NDArray[np.float64], drawn: NDArray[np.float64], order: tuple[int, ...]
) -> NDArray[np.float64]:
    """Shares of the bins, float64 [V, 16]: of token t, times how often it is drawn, in its row."""
    edges = np.arange(BIN_COUNT + 1) / BIN_COUNT
    shares = np.zeros((len(law), BIN_COUNT))
    start = 0.0
    for token in order:
        end = start + law[token]
        overlap = np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0, None)
        shares[token] = drawn[token] * overlap / law[token]
        start = end
    return shares


def shares(shape: str, distance: float) -> NDArray[np.float64]:
    """The bins' shares, float64 [16], of tokens that far from their law, under the order that shows it."""
    if shape == "halves":
        return (1 + 2 * distance * np.repeat((1.0, -1.0), BIN_COUNT // 2)) / BIN_COUNT
    token = {SHAPES[0]: 0, SHAPES[1]: 3, SHAPES[2]: 7}[shape]
    drawn = LAW * (1 - distance / (1 - LAW[token]))
    drawn[token] = LAW[token] + distance
    order = (token, *(other for other in range(len(LAW)) if other != token))
    return bins_of(LAW, drawn, order).sum(0)


def log_means(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """log of the mean e-value of streams with counts [runs, orders, 4, 16]: float64 [runs]."""
    values = np.moveaxis(np.stack(log_e_values(counts)), -1, 0).reshape(-1, len(counts))
    return log_mean(np.append(values, np.zeros((1, len(counts))), axis=0))  # no repeats


def false_alarms(runs: int, tokens: int, look: int, alpha: float) -> float:
    """Share of exact streams that are ever called false."""
    rng = np.random.default_rng(0)
    before = np.array([[sum(LAW[o] for o in order[: order.index(t)]) for order in ORDERS] for t in range(8)])
    counts = np.zeros((runs, len(ORDERS), PARTS, BIN_COUNT), np.int64)
    flat = counts.reshape(-1)
    first = np.arange(runs * len(ORDERS)).reshape(runs, -1) * PARTS * BIN_COUNT
    average = np.zeros((runs, len(ORDERS)))
    alarmed = np.zeros(runs, bool)
    for number in range(1, tokens + 1):
        token = np.minimum(np.searchsorted(np.cumsum(LAW), rng.random(runs)), len(LAW) - 1)
        place = before[token] + rng.random((runs, len(ORDERS))) * LAW[token, None]
        bins = np.minimum((place * BIN_COUNT).astype(np.int64), BIN_COUNT - 1)
        flat[first + np.searchsorted(QUARTILES, average) * BIN_COUNT + bins] += 1
        average = MEMORY * average + place - 0.5
        if number % look == 0:
            alarmed |= log_means(counts) >= -math.log(alpha)
    return float(alarmed.mean())


def found_after(
    shape: str, distance: float, *, runs: int, tokens: int, look: int, alpha: float
) -> NDArray[np.int64]:
    """Tokens after which each stream was called false, int64 [runs]; NEVER if it was not."""
    rng = np.random.default_rng(1)
    counts = np.zeros((runs, len(NAMES), PARTS, BIN_COUNT), np.int64)
    found = np.full(runs, NEVER)
    even = np.full(BIN_COUNT, 1 / BIN_COUNT)
    own = shares(shape, distance)
    for number in range(1, tokens // look + 1):
        parts = rng.multinomial(look, np.full(PARTS, 1 / PARTS), size=(runs, len(NAMES)))
        counts[:, 0] += rng.multinomial(parts[:, 0], own)
        counts[:, 1:] += rng.multinomial(parts[:, 1:], even)
        now = (log_means(counts) >= -math.log(alpha)) & (found == NEVER)
        found[now] = number * look
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--alpha", type=float, default=1e-3)
    parser.add_argument("--runs", type=int, default=4000, help="exact streams")
    options = parser.parse_args()
    alpha = options.alpha
    report: dict[str, object] = {"alpha": alpha}
    alarms = false_alarms(options.runs, 50_000, 250, alpha)
    print(f"exact streams: {options.runs} of 50,000 tokens, 200 looks each, called false: {alarms:.5f}")
    report["false_alarms"] = alarms
    print(f"\n{'false streams (200 each)':30}{'TV':>6}{'of bins':>9}{'found by 50,000':>17}{'by 6,000':>10}"
          f"{'median tokens':>15}{'slowest':>9}")  # fmt: skip
    for distance in (0.01, 0.02, 0.05):
        for shape in SHAPES:
            found = found_after(shape, distance, runs=200, tokens=50_000, look=250, alpha=alpha)
            of_bins = 0.5 * float(np.abs(shares(shape, distance) - 1 / BIN_COUNT).sum())
            late, early = float(np.mean(found < NEVER)), float(np.mean(found <= 6000))
            slowest = "-" if late < 1 else f"{found.max():,}"
            middle = "-" if np.median(found) == NEVER else f"{int(np.median(found)):,}"
            print(f"{shape:30}{distance:6.2f}{of_bins:9.3f}{late:17.1%}{early:10.1%}{middle:>15}{slowest:>9}")
            report[f"{shape} {distance}"] = {"found": late, "found_by_6000": early, "median": middle}
    print(f"\n{'tokens':>8}{'caught (computed)':>19}{'found there (of 1,000 runs)':>29}")
    for tokens in (1000, 2000, 5000, 10_000, 50_000, 200_000):
        caught = smallest_caught(tokens, alpha, len(NAMES))
        assert caught is not None
        found = found_after("halves", caught, runs=1000, tokens=tokens, look=tokens, alpha=alpha)
        print(f"{tokens:8,}{caught:19.4f}{np.mean(found < NEVER):29.1%}")
        report[f"caught {tokens}"] = caught
    print(json.dumps(report))


if __name__ == "__main__":
    main()
