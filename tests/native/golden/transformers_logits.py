"""The logits of the tiny models as the transformers library computes them, in float32.

    python -m tests.native.golden.transformers_logits

writes them to expected.npz, with the versions in manifest.json. Needs torch and transformers, which nothing
else here does.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.native.golden.families import (
    FAMILIES,
    LENGTH,
    SCORED,
    VOCABULARY,
    Family,
    Floats,
    blocks_and_vectors,
    dequantise,
)

HERE = Path(__file__).parent


def logits(family: Family) -> Floats:
    """Logits of all positions, float32 [LENGTH, VOCABULARY]."""
    import torch
    import transformers

    name = family.kind + ("Text" if family.kind == "Gemma3" else "") + "Config"
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": family.hidden,
        "intermediate_size": family.ffn,
        "num_hidden_layers": family.layers,
        "num_attention_heads": family.heads,
        "num_key_value_heads": family.kv_heads,
        "head_dim": family.head_dim,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": family.tied,
        "pad_token_id": None,
    }
    config = getattr(transformers, name)(**sizes, **family.options)
    config._attn_implementation = "eager"
    model = getattr(transformers, family.kind + "ForCausalLM")(config).to(torch.float32).eval()
    blocks, vectors = blocks_and_vectors(family)
    weights = {name: dequantise(data) for name, data in blocks.items()} | vectors
    if family.tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    found = model.state_dict()
    assert set(found) == set(weights), set(found) ^ set(weights)
    model.load_state_dict({name: torch.from_numpy(data.copy()) for name, data in weights.items()})
    with torch.no_grad():
        result: Floats = model(torch.from_numpy(family.tokens)[None]).logits[0].numpy()
    assert result.shape == (LENGTH, VOCABULARY)
    return result


def main() -> None:
    import torch
    import transformers

    expected = {name: logits(family)[list(SCORED)] for name, family in FAMILIES.items()}
    path = HERE / "expected.npz"
    np.savez_compressed(path, **expected)
    manifest = {
        "made_by": "python -m tests.native.golden.transformers_logits",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": "float32",
        "positions": SCORED,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "spread": {name: round(float(rows.std()), 3) for name, rows in expected.items()},
    }
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(json.dumps(manifest))


if __name__ == "__main__":
    main()
