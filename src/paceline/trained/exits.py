"""Trained exits on the CPU kernels: weights rounded to 8 bits with a scale per 32, Q8_0, and the target's own
packed head. `paceline.trained.exits_reference` says what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from paceline import kernels
from paceline.errors import IncompatibleDrafter
from paceline.kernels.packing import Embedding
from paceline.kernels.reference import rms_norm
from paceline.models.drafter_folder import Floats
from paceline.models.exit_folder import ExitWeights
from paceline.trained._fit import Product, check_target, check_widths, product


class NativeExits:
    """Exits for one target.

    readouts  {exit: from hidden states float32 [n, H] behind so many layers to logits float32 [n, V]}
    """

    readouts: dict[int, Callable[[Floats], Floats]]

    def __init__(self, weights: ExitWeights, head: Embedding, layers: int) -> None:
        """head: the target's; layers: how many it has. Raises IncompatibleDrafter for exits of another
        target."""
        config = weights.config
        check_target(config.vocab_size, config.hidden, head)
        check_widths({"hidden_size": config.hidden})
        if config.layers != layers:
            raise IncompatibleDrafter(
                f"the exits were trained for a target of {config.layers} layers, this one has {layers}"
            )
        logits = kernels.product(head.type, head.vocab_size, head.hidden, head.packed)
        self.readouts = {
            exit: partial(
                _readout,
                product(weights.tensors[f"exits.{exit}.weight"]),
                weights.tensors[f"exits.{exit}.norm.weight"],
                config.norm_eps,
                logits,
            )
            for exit in config.exits
        }


def _readout(mapping: Product, norm: Floats, eps: float, head: Product, states: Floats) -> Floats:
    return head(rms_norm(states + mapping(states), norm, eps))
