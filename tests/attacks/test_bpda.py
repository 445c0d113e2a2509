"""BPDA on an artifact, against the closed form of a linear network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from robust_export.attacks.bpda import bpda
from robust_export.recipe.schema import Threat, Verify
from robust_export.runtimes.classifier import Logits, Pixels
from tests.attacks.artifacts import ModuleArtifact, NanArtifact, misclassified
from tests.conftest import Linear

CHEAP = Verify(iterations=30, batch_size=16)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.005), ("L2", 0.03)])
def test_agrees_with_closed_form(linear: Linear, norm: str, eps: float) -> None:
    threat = Threat("Linf" if norm == "Linf" else "L2", eps)
    artifact = ModuleArtifact(linear.module)
    found = bpda(artifact, linear.module, linear.pixels, linear.labels, threat, CHEAP)
    assert misclassified(artifact, found, linear.labels) == (~linear.robust(eps, norm)).tolist()
    delta = (found - linear.pixels).flatten(1)
    assert (delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)).max() <= eps * 1.0001


def test_attacks_the_artifact_not_the_surrogate(linear: Linear) -> None:
    """The artifact has a larger bias for one class than the surrogate: other images break."""
    other = nn.Sequential(nn.Flatten(), nn.Linear(108, 5))
    other.load_state_dict(linear.module.state_dict())
    with torch.no_grad():
        other.get_parameter("1.bias")[0] += 1.0
    artifact = ModuleArtifact(other.eval())
    threat = Threat("Linf", 0.005)
    found = bpda(artifact, linear.module, linear.pixels, linear.labels, threat, CHEAP)
    broken = misclassified(artifact, found, linear.labels)
    assert broken == (~Linear(other, linear.pixels, linear.labels).robust(0.005, "Linf")).tolist()
    assert broken != (~linear.robust(0.005, "Linf")).tolist()


def test_observe_gets_logits_of_both(linear: Linear) -> None:
    surrogate = nn.Sequential(*linear.module, nn.Softmax(1))  # the same classes, other logits
    artifact, observed = ModuleArtifact(linear.module), 0

    def observe(pixels: Pixels, surrogate_logits: Logits, artifact_logits: Logits) -> None:
        nonlocal observed
        expected = surrogate(torch.from_numpy(pixels)).detach().numpy()
        np.testing.assert_allclose(surrogate_logits, expected, atol=1e-5)
        np.testing.assert_allclose(artifact_logits, artifact(pixels), atol=1e-5)
        observed += len(pixels)

    threat = Threat("Linf", 0.001)
    bpda(artifact, surrogate, linear.pixels, linear.labels, threat, Verify(iterations=2), observe)
    assert observed >= 2 * len(linear.pixels)


def test_seed_decides_and_global_rng_is_restored(linear: Linear) -> None:
    artifact, runs = ModuleArtifact(linear.module), []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        threat = Threat("Linf", 0.003)
        runs.append(bpda(artifact, linear.module, linear.pixels, linear.labels, threat, CHEAP))
        assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(*runs)


def test_nan_logits_leave_finite_examples(linear: Linear) -> None:
    threat = Threat("Linf", 0.001)
    found = bpda(NanArtifact(linear.module), linear.module, linear.pixels, linear.labels, threat, CHEAP)
    assert found.isfinite().all()
    assert (found - linear.pixels).abs().max() <= threat.eps * 1.0001
