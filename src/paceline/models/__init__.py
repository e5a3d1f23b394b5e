"""Where models come from: the registry, the GGUF reader, tokenizers and chat templates.

The modules are imported one by one (`from paceline.models.registry import resolve`), so that a command
pays only for what it uses.
"""
