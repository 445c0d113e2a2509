"""Adversarial training: a recipe in, a bundle out, resumable at any step."""
