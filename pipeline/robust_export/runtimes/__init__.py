"""Runtimes: every way to run a model or an artifact, behind the protocol of `classifier`."""
