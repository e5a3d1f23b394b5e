"""Paceline: exact speculative decoding for language models."""
