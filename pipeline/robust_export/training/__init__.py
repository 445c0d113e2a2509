"""Adversarial training: trains the model of a recipe and writes a bundle; can be resumed at any step."""
