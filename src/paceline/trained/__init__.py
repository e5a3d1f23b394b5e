"""Models that were trained to draft: their forward passes on our kernels, and slow references to check them
by."""
