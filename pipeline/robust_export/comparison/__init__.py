"""Comparing activations over seeds: what is trained (plan), how it is run, and what the numbers say."""
