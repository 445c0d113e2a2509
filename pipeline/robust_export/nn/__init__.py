"""Sparta and the networks that use it: the function and its module, replacing activations, models by name."""
