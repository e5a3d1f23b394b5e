"""Measuring: drafters against plain decoding, the cost of a pass, and the machine it all ran on."""
