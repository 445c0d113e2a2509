"""Classifiers: what runs a bundle or an artifact, behind one protocol."""
