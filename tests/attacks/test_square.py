"""Square on an artifact, against the closed form of a linear network."""

from __future__ import annotations

import numpy as np
import torch

from robust_export.attacks.square import square
from robust_export.recipe.schema import Threat, Verify
from tests.attacks.artifacts import ModuleArtifact, NanArtifact, misclassified
from tests.conftest import Linear

CHEAP = Verify(queries=300, batch_size=16)


def test_breaks_most_breakable_images_and_no_other(linear: Linear) -> None:
    artifact = ModuleArtifact(linear.module)
    found = square(artifact, linear.pixels, linear.labels, Threat("Linf", 0.01), CHEAP)
    broken = np.array(misclassified(artifact, found, linear.labels))
    breakable = (~linear.robust(0.01, "Linf")).numpy()
    assert not (broken & ~breakable).any()
    assert broken.sum() >= 0.7 * breakable.sum() > 0
    assert (found - linear.pixels).abs().max() <= 0.01 * 1.0001


def test_number_of_queries(linear: Linear) -> None:
    artifact = ModuleArtifact(linear.module)
    square(artifact, linear.pixels, linear.labels, Threat("Linf", 1e-6), Verify(queries=10))
    assert artifact.queries == 40 * (10 + 3)  # the start, and a prediction before and after


def test_seed_decides_and_global_rng_is_restored(linear: Linear) -> None:
    artifact, runs = ModuleArtifact(linear.module), []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        runs.append(square(artifact, linear.pixels, linear.labels, Threat("Linf", 0.003), CHEAP))
        assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(*runs)


def test_nan_logits_leave_finite_examples(linear: Linear) -> None:
    threat = Threat("Linf", 0.001)
    found = square(NanArtifact(linear.module), linear.pixels, linear.labels, threat, CHEAP)
    assert found.isfinite().all()
    assert (found - linear.pixels).abs().max() <= threat.eps * 1.0001
