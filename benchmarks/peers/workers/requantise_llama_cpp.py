"""Writes a GGUF file requantised to q8_0 by llama.cpp: python -m ... FILE.gguf THREADS NEW.gguf."""

import ctypes
import sys

import llama_cpp as llama


def main() -> None:
    source, threads, target = sys.argv[1:]
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = llama.LLAMA_FTYPE_MOSTLY_Q8_0, True, int(threads)
    if code := llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        sys.exit(f"error: llama_model_quantize failed with {code}")


if __name__ == "__main__":
    main()
