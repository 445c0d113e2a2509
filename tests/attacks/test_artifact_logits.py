"""Logits of an artifact as tensors: rows that are not finite."""

from __future__ import annotations

import numpy as np
import torch

from robust_export.attacks.artifact_logits import correctly_classified, finite, finite_logits
from tests.attacks.artifacts import ModuleArtifact, NanArtifact
from tests.conftest import Linear


def test_non_finite_rows_become_zero() -> None:
    logits = np.array([[1, np.inf], [2, 3], [np.nan, 0]], np.float32)
    np.testing.assert_array_equal(finite(logits), np.array([[0, 0], [2, 3], [0, 0]], np.float32))


def test_finite_logits_equal_those_of_the_module(linear: Linear) -> None:
    expected = linear.module(linear.pixels).detach()
    assert torch.equal(finite_logits(ModuleArtifact(linear.module), linear.pixels), expected)
    expected[::2] = 0
    assert torch.equal(finite_logits(NanArtifact(linear.module), linear.pixels), expected)


def test_non_finite_logits_are_not_correct(linear: Linear) -> None:
    artifact = NanArtifact(linear.module)
    correct = correctly_classified(artifact, linear.pixels, linear.labels)
    assert correct.tolist() == [i % 2 == 1 for i in range(len(linear.labels))]
    wrong = (linear.labels + 1) % 5
    assert not correctly_classified(artifact, linear.pixels, wrong).any()
