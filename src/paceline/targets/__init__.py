"""Targets: the models whose answers are given. One file per backend."""
