"""Training drafters: the target's answers as data, the loop, the architectures (docs/training.md)."""
