"""Training EAGLE-3 sees what drafting with it does, and its folder says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from paceline.models.bfloat16 import to_float32
from paceline.models.safetensors_file import map_safetensors
from paceline.train.batches import collate
from paceline.train.loop import Run
from paceline.train.settings import Settings
from tests.train.conftest import Make

Floats = np.ndarray[Any, Any]
DEPTHS = 3


@pytest.fixture
def run(make: Make, tmp_path: Path, sharp: Path) -> Run:
    make(tmp_path / "data", file=sharp, tokens=200)
    arch = f"eagle3:depths={DEPTHS},draft_vocab=100"
    settings = Settings(arch=arch, dtype="float32", batch_tokens=100, epochs=3, held_out=0.0)
    run = Run(tmp_path / "data", tmp_path / "out", settings, threads=1)
    run.train(lambda step, log: None)
    return run


class Reference:
    """A drafter's folder, computed slot by slot as an engine drafts with it."""

    def __init__(self, folder: Path, embedding: Floats) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.config, layer = config, config["transformer_layer_config"]
        tensors = load_file(folder / "model.safetensors")
        self.tensors = {name: tensor.float().numpy() for name, tensor in tensors.items()}
        self.embedding, self.eps = embedding, layer["rms_norm_eps"]
        self.heads, self.kv_heads = layer["num_attention_heads"], layer["num_key_value_heads"]
        self.dim = layer["head_dim"]
        self.frequencies = layer["rope_theta"] ** (-np.arange(0, self.dim, 2) / self.dim)

    def norm(self, x: Floats, name: str) -> Floats:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.tensors[name + ".weight"]

    def slot(self, token: int, feature: Floats, position: int, cache: list[tuple[Floats, Floats]]) -> Floats:
        """What the layer makes of one slot, whose keys and values are added to the cache."""
        at = "layers.0."
        read = np.concatenate(
            [self.norm(self.embedding[token], at + "input_layernorm"), self.norm(feature, at + "hidden_norm")]
        )

        def heads(name: str, rotated: bool) -> Floats:
            x = (self.tensors[f"{at}self_attn.{name}_proj.weight"] @ read).reshape(-1, self.dim)
            if rotated:
                turned = np.exp(1j * position * self.frequencies) * (
                    x[:, : self.dim // 2] + 1j * x[:, self.dim // 2 :]
                )
                x = np.concatenate([turned.real, turned.imag], -1)
            return x.repeat(self.heads // len(x), axis=0)

        cache.append((heads("k", True), heads("v", False)))
        keys, values = (np.stack(part, 1) for part in zip(*cache, strict=True))
        scores = np.einsum("hd,hnd->hn", heads("q", True), keys) / np.sqrt(self.dim)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("hn,hnd->hd", shares / shares.sum(-1, keepdims=True), values).reshape(-1)
        feature = feature + self.tensors[at + "self_attn.o_proj.weight"] @ attended
        x = self.norm(feature, at + "post_attention_layernorm")
        gate = self.tensors[at + "mlp.gate_proj.weight"] @ x
        up = self.tensors[at + "mlp.up_proj.weight"] @ x
        return feature + self.tensors[at + "mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)

    def draft(self, tokens: list[int], states: Floats, base: int, depth: int) -> Floats:
        """Logits of a draft behind base t, at a depth: its slots up to t read hidden states, those behind it
        what the drafter made itself, and all of them the next token of the text."""
        cache: list[tuple[Floats, Floats]] = []
        for t in range(base + 1):
            fused = self.tensors["fc.weight"] @ states[t, :-1].reshape(-1)
            feature = self.slot(tokens[t + 1], fused, t, cache)
        for own in range(1, depth + 1):
            feature = self.slot(tokens[base + 1 + own], feature, base + own, cache)
        logits: Floats = self.tensors["lm_head.weight"] @ self.norm(feature, "norm")
        return logits


def test_training_unrolls_what_drafting_does(run: Run, tmp_path: Path) -> None:
    drafter = run.drafter
    drafter.load_state_dict(
        {
            name: tensor.float()
            for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items()
            if name not in ("d2t", "t2d")
        }
    )
    batch = collate(run.corpus, [0, 1, 2], torch.device("cpu"))
    with torch.no_grad():
        trained = [logits.numpy() for logits in drafter.logits(batch)]
    reference = Reference(tmp_path / "out", run.teacher.embedding.float().numpy())
    for depth in range(DEPTHS):
        bases = torch.nonzero(batch.bases(depth)).tolist()
        assert len(bases) == len(trained[depth]) > 10
        for at in range(0, len(bases), 3):
            row, base = bases[at]
            tokens, states = batch.tokens[row].tolist(), batch.states[row].float().numpy()
            drafted = reference.draft(tokens, states, base, depth)
            np.testing.assert_allclose(trained[depth][at], drafted, rtol=1e-3, atol=2e-4)
            if (
                depth
            ):  # a longer prefix and a shorter draft lead to the same token, but not to the same logits
                other = reference.draft(tokens, states, base + 1, depth - 1)
                assert np.abs(trained[depth][at] - other).max() > 1e-2


def test_the_folder_has_all_that_engines_ask_for(run: Run, tmp_path: Path) -> None:
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    hidden, ffn = 64, 96
    layer = {f"layers.0.{name}.weight": [hidden] for name in
             ("input_layernorm", "hidden_norm", "post_attention_layernorm")}  # fmt: skip
    attention = {"q": [64, 2 * hidden], "k": [32, 2 * hidden], "v": [32, 2 * hidden], "o": [hidden, 64]}
    layer |= {f"layers.0.self_attn.{name}_proj.weight": shape for name, shape in attention.items()}
    mlp = {"gate": [ffn, hidden], "up": [ffn, hidden], "down": [hidden, ffn]}
    layer |= {f"layers.0.mlp.{name}_proj.weight": shape for name, shape in mlp.items()}
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        **layer,
        "fc.weight": [hidden, hidden],
        "norm.weight": [hidden],
        "lm_head.weight": [100, hidden],
        "d2t": [100],
        "t2d": [265],
    }
    assert (tensors["d2t"].dtype, tensors["t2d"].dtype) == (torch.int64, torch.bool)
    ids = torch.arange(100) + tensors["d2t"]
    assert torch.equal(torch.nonzero(tensors["t2d"]).flatten(), ids)
    counts = run.teacher.counts
    assert counts[ids].min() >= np.delete(counts, ids).max(), "the most frequent tokens are those"
    assert config["eagle_aux_hidden_state_layer_ids"] == [0]
    assert config["draft_vocab_size"] == 100
    assert [
        config[name] for name in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
    ] == [False] * 4
    assert config["transformer_layer_config"]["vocab_size"] == 265
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == DEPTHS
    assert config["speculators_config"]["verifier"]["name_or_path"].endswith("sharp.gguf")


def test_the_target_in_a_data_set_gives_the_targets_law(run: Run, sharp: Path) -> None:
    from paceline.core import NOTHING, Draft, View
    from paceline.targets.native import NativeTarget

    target = NativeTarget.load(sharp, threads=1)
    tokens = run.corpus.tokens(0).tolist()
    none: list[Any] = [None]
    view = View([0], [tokens], [0], [len(tokens)], none, [0], [1], ["none"])
    own = target.forward(Draft.pack(view, [NOTHING]), frozenset({"hidden.1"}))
    states = torch.from_numpy(own.features["hidden.1"][-1:].copy())
    law = run.teacher.logits(states, run.teacher.head.float()).softmax(-1).numpy()
    exact = torch.from_numpy(own.logits.copy()).softmax(-1).numpy()
    assert np.abs(law - exact).sum() / 2 < 0.02, "the target rounds to 8 bits what it multiplies"
    assert exact.max() > 0.05


def test_shards_are_what_the_library_of_the_format_reads(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "data" / "shard-00000.safetensors"
    ours, theirs = map_safetensors(path), load_file(path)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        if name == "states":
            np.testing.assert_array_equal(to_float32(array), theirs[name].float().numpy())
        else:
            np.testing.assert_array_equal(array, theirs[name].numpy())
