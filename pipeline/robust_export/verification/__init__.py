"""Verification of artifacts: parity with the reference model, and robust accuracy."""
