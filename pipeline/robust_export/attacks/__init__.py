"""Attacks: PGD for training; AutoAttack for models; BPDA and Square for artifacts, which have no gradient."""
