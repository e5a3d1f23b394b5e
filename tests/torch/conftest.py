"""These tests need the extra paceline[torch]; without it they are not there."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("torch") is None or find_spec("transformers") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import torch

    torch.set_num_threads(1)  # for models as small as these, more only wait for each other
