"""Writes a GGUF model as float32 safetensors with its tokenizer: python -m ... FILE.gguf FOLDER."""

import sys
from pathlib import Path

import torch
import transformers


def main() -> None:
    file, folder = Path(sys.argv[1]), sys.argv[2]
    options = {"gguf_file": file.name}
    transformers.AutoTokenizer.from_pretrained(file.parent, **options).save_pretrained(folder)
    if hasattr(transformers, "GgufConfig"):  # transformers 5 would keep the file's blocks
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
    # What is left of them would keep the plain floats from being written.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)


if __name__ == "__main__":
    main()
