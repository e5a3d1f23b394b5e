"""The target's own layers in PyTorch, frozen: what it makes of a text, and of embeddings that stand behind
it.

Weights are the numbers of the model file; activations are not rounded as the kernels round them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from paceline.errors import ConfigError, TrainingError
from paceline.kernels.packing import dequantise
from paceline.models.cache import sha256_of
from paceline.models.registry import resolve
from paceline.targets.weights import PackedWeights, load_weights
from paceline.train.dataset import TargetRecord
from paceline.train.draft_attention import Pair, draft_attention


class TargetLayers:
    """A target as its file has it.

    embedding   float32 [V, H], which is multiplied by the config's `embedding_scale`; head: float32 [V, H]
    """

    def __init__(self, weights: PackedWeights, device: torch.device) -> None:
        """Raises ConfigError for an architecture whose layers these are not."""
        config = weights.config
        if config.gelu or config.post_norms or config.window:
            raise ConfigError(
                f"training through the layers of architecture {config.architecture} is not there; it is for "
                "Llama, Mistral, SmolLM, Qwen2 and Qwen3"
            )
        self._config = config
        self._frequencies = torch.from_numpy(weights.frequencies[0]).float().to(device)
        tensors = {
            name: _tensor(weights, name).to(device) for name in weights.tensors if not name.endswith(".type")
        }
        self.embedding = tensors["token_embd.weight"]
        self.head = tensors.get("output.weight", self.embedding)
        self._norm = tensors["output_norm.weight"]
        self._layers = [
            {name.removeprefix(at): tensor for name, tensor in tensors.items() if name.startswith(at)}
            for at in (f"blk.{layer}." for layer in range(config.layers))
        ]

    def read(self, tokens: Tensor) -> list[Pair]:
        """Each layer's keys and values of texts, [B, heads, L, dim] each. tokens: int64 [B, L]."""
        x = functional.embedding(tokens, self.embedding)[None] * self._config.embedding_scale
        found: list[Pair] = []
        with torch.no_grad():
            for layer in range(self._config.layers):
                x, keys, values = self._layer(layer, x, 0, None)
                found.append((keys[0], values[0]))
        return found

    def follow(self, text: list[Pair], embeddings: Tensor) -> Tensor:
        """What the head would read at embeddings [S, H] that stand behind each position of the texts, one
        behind the other: float32 [S, B, L, H]. They see the text up to the position and those before them; of
        all this only the embeddings have a gradient."""
        batch, _, length, _ = text[0][0].shape
        x = embeddings[:, None, None].expand(-1, batch, length, -1)
        for layer, pair in enumerate(text):
            # Made again for the gradient: all layers' activations would fill the memory.
            x, _, _ = checkpoint(self._layer, layer, x, 1, pair, use_reentrant=False)
        return self._normed(x, self._norm)

    def _layer(self, number: int, x: Tensor, first: int, text: Pair | None) -> tuple[Tensor, Tensor, Tensor]:
        """A layer's output, keys and values for x [S, B, L, H], whose slot s stands `first + s` places behind
        each position."""
        tensors, config = self._layers[number], self._config
        read = self._normed(x, tensors["attn_norm.weight"])
        q, k, v = (self._projected(read, tensors, name) for name in ("attn_q", "attn_k", "attn_v"))
        dtype = v.dtype
        q = self._rotated(q, first) * (config.query_scale * config.head_dim**0.5)
        k, groups = self._rotated(k, first), config.heads // config.kv_heads
        q, k = q.to(dtype), k.to(dtype).repeat_interleave(groups, 2)
        v = v.repeat_interleave(groups, 2)
        own = list(zip(k, v, strict=True))
        attended = torch.stack(
            [
                draft_attention(slot, own if text is None else [text, *own[: place + 1]])
                for place, slot in enumerate(q)
            ]
        )
        x = x + functional.linear(attended.transpose(2, 3).flatten(3), tensors["attn_output.weight"])
        read = self._normed(x, tensors["ffn_norm.weight"])
        gate, up = (functional.linear(read, tensors[f"ffn_{name}.weight"]) for name in ("gate", "up"))
        return x + functional.linear(functional.silu(gate) * up, tensors["ffn_down.weight"]), k, v

    def _projected(self, read: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
        """[S, B, heads, L, dim]."""
        x = functional.linear(read, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
        x = x.unflatten(-1, (-1, self._config.head_dim)).transpose(2, 3)
        return self._normed(x, tensors[f"{name}_norm.weight"]) if f"{name}_norm.weight" in tensors else x

    def _rotated(self, x: Tensor, first: int) -> Tensor:
        """Rotary positions on neighbouring pairs of x [S, B, heads, L, dim], as packed weights have them."""
        positions = (
            torch.arange(x.shape[3], device=x.device)
            + torch.arange(first, first + len(x), device=x.device)[:, None]
        )
        angles = (positions[..., None] * self._frequencies)[:, None, None]
        cos, sin = angles.cos(), angles.sin()
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._config.norm_eps) * weight


def load_layers(record: TargetRecord, device: torch.device) -> TargetLayers:
    """The layers of the target that gave a data set's answers. Raises ModelFileError, ConfigError;
    TrainingError if the model is another file by now."""
    path = resolve(record.model)
    if not path.is_file() or sha256_of(path) != record.file_sha256:
        raise TrainingError(f"{record.model} is another file than the one that gave the answers")
    return TargetLayers(load_weights(Path(path)), device)


def _tensor(weights: PackedWeights, name: str) -> Tensor:
    config, data = weights.config, weights.tensors[name]
    if name + ".type" not in weights.tensors:
        return torch.from_numpy(data.view("float32").copy())
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    rows, columns = {
        "token_embd": (config.vocab_size, config.hidden),
        "output": (config.vocab_size, config.hidden),
        "attn_q": (q, config.hidden),
        "attn_k": (kv, config.hidden),
        "attn_v": (kv, config.hidden),
        "attn_output": (config.hidden, q),
        "ffn_gate": (config.ffn, config.hidden),
        "ffn_up": (config.ffn, config.hidden),
        "ffn_down": (config.hidden, config.ffn),
    }[name.split(".")[-2]]
    return torch.from_numpy(dequantise(weights.tensors[name + ".type"], rows, columns, data))
