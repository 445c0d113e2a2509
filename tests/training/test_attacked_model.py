"""The network that attacks differentiate: folded or compiled, without gradients of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.trainers import first_images, make_trainer, take_steps


def test_training_with_a_folded_copy_equals_without(tmp_path: Path) -> None:
    plain, expected = take_steps(tmp_path)
    folded, losses = take_steps(tmp_path, train={"fold_norms": True})
    assert plain.step.attacked.folded is None
    with folded.step.attacked(folded.step.model) as network:
        assert network is folded.step.attacked.folded
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)
    accuracies = [t.validator.accuracy(t.step.ema.module) for t in (plain, folded)]
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.03)


def test_training_with_a_compiled_copy_equals_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only torch's graph capture runs; the graph is interpreted instead of compiled to C++."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: original(module, backend=backend))
    _, expected = take_steps(tmp_path)
    _, losses = take_steps(tmp_path, train={"compile": True})
    assert graphs
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


class GradientMasks(TorchDispatchMode):
    """Records for which of (input, weight, bias) each convolution computes a gradient."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.masks: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(list(args[-1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("train", [{}, {"fold_norms": True}])
def test_attack_computes_no_gradient_of_weights(tmp_path: Path, train: dict[str, Any]) -> None:
    trainer = make_trainer(tmp_path, train=train)
    pixels, labels = first_images(trainer, 8)
    with GradientMasks() as recorded, trainer.step.attacked(trainer.step.model) as network:
        trainer.step.method(network, pixels, labels, torch.Generator().manual_seed(0))
    assert recorded.masks
    assert all(mask == [True, False, False] for mask in recorded.masks)
