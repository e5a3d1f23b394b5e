"""The weights of a model as they are stored, quantised ones included.

torchao keeps the face of a parameter, its shape and dtype, over several tensors that hold it; bitsandbytes
keeps packed numbers in the parameter's place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from paceline.errors import ConfigError
from paceline.kernels.packing import Embedding, pack
from paceline.targets.weights import aligned


def stored(model: Any) -> list[Tensor]:
    """The tensors that hold a model's parameters; bitsandbytes' scales are not among them."""
    return [part for weight in model.parameters() for part in _parts(weight)]


def _parts(weight: Tensor) -> list[Tensor]:
    if not is_traceable_wrapper_subclass(weight):
        return [weight]
    names, _ = weight.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(weight, name))]


def refuse_mixed_rows(model: Any) -> None:
    """Raise ConfigError for a model in which what a token's logits are depends on the tokens beside it, by
    more than rounding: LLM.int8 chooses, anew for all tokens of a call, the columns that stay in 16 bits."""
    asked: Any = getattr(model.config, "quantization_config", None)
    if getattr(asked, "load_in_8bit", False) and asked.llm_int8_threshold > 0:
        raise ConfigError(
            f"{type(model).__name__} is quantised with llm_int8_threshold={asked.llm_int8_threshold:g}, with "
            "which a token's logits depend on the tokens beside it; load it with llm_int8_threshold=0"
        )


def matrix(part: Any) -> Embedding:
    """The matrix of an embedding or a head, as bfloat16. Raises ConfigError if bitsandbytes quantised it."""
    weight = part.weight.detach()
    if not weight.is_floating_point():
        raise ConfigError(
            "drafters that share the model's head need it in floating point; leave it out with "
            "llm_int8_skip_modules"
        )
    if is_traceable_wrapper_subclass(weight):
        weight = weight.dequantize()
    halves = weight.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
    return Embedding("BF16", aligned(pack("BF16", halves.view(np.uint8))), *weight.shape)
