"""Runtimes: everything that runs an artifact, behind one protocol (classifier.py)."""
