"""Benchmarks of inference time: networks, engines, and the Sparta operator alone."""
