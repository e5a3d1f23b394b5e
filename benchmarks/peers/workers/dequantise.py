"""Writes a GGUF model as float32 safetensors with its tokenizer: python -m ... FILE.gguf FOLDER."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    file, folder = Path(sys.argv[1]), sys.argv[2]
    options = {"gguf_file": file.name}
    AutoTokenizer.from_pretrained(file.parent, **options).save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options).save_pretrained(folder)


if __name__ == "__main__":
    main()
