"""What an attack runs on: folded norms, float16 whose gradient arrives, and no gradient of a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robust_export.attacks.pgd import pgd
from robust_export.errors import TrainingError, UnsupportedModel
from robust_export.nn.models import create_model
from robust_export.recipe.recipe_file import parse
from robust_export.recipe.schema import Threat
from robust_export.training import methods
from robust_export.training.bn_folding import FoldedCopy, Scaled, adjacent
from robust_export.training.trainer import Run
from tests.conftest import tiny_recipe

CPU = torch.device("cpu")
BACKBONES = ["resnet10t_sparta", "mobilenetv3_small_050_relu", "regnetx_002_sparta"]


def shaken(name: str) -> nn.Module:
    """Return a network whose norms are far from their start, in eval mode."""
    torch.manual_seed(0)
    model = create_model(name, image_size=32).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model


@pytest.mark.parametrize("name", BACKBONES)
def test_a_folded_network_computes_the_same(name: str) -> None:
    model, pixels = shaken(name), torch.rand(3, 3, 32, 32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    twin = FoldedCopy(model, pixels[:2], fold=True, compiled=False)
    norms = sum(isinstance(child, nn.BatchNorm2d) for child in model.modules())
    assert len(twin.pairs) == norms
    assert not any(isinstance(child, nn.BatchNorm2d) for child in twin.modules())
    twin.follow(model)
    torch.testing.assert_close(twin(pixels), model(pixels), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.02)
    assert not torch.allclose(twin(pixels), model(pixels), rtol=1e-3)
    twin.follow(model)
    torch.testing.assert_close(twin(pixels), model(pixels), rtol=1e-3, atol=1e-4)
    assert before.keys() == model.state_dict().keys()


class Branches(nn.Module):
    """Its convolution's output goes to its norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        plane = self.conv(x)
        return torch.as_tensor(self.norm(plane) + plane).mean((2, 3))


def test_what_cannot_be_folded_is_refused() -> None:
    pixels = torch.rand(2, 3, 8, 8)
    with pytest.raises(TrainingError, match=r"cannot be folded.*Branches.*train\.fold_norms"):
        FoldedCopy(Branches(), pixels, fold=True, compiled=False)


def test_a_norm_that_is_called_twice_stays() -> None:
    norm, first, second = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    assert adjacent(nn.Sequential(first, norm, second, norm), torch.rand(2, 3, 4, 4)) == []
    names = adjacent(
        nn.Sequential(first, nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)), torch.rand(2, 3, 4, 4)
    )
    assert names == [("0", "1")]


def steps(tmp_path: Path, **sections: dict[str, Any]) -> tuple[Run, list[Tensor]]:
    """Return a run after three steps, and their losses."""
    job = Run(tiny_recipe(**sections), tmp_path, CPU)
    pixels, labels = job.train_images.batch(range(32))
    return job, [job._step(pixels, labels, torch.Generator().manual_seed(i)) for i in range(3)]


def test_training_by_a_folded_twin_is_the_same_up_to_rounding(tmp_path: Path) -> None:
    plain, expected = steps(tmp_path)
    folded, found = steps(tmp_path, train={"fold_norms": True})
    assert folded.twin is not None
    assert plain.twin is None
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert folded.validate(folded.ema.module) == pytest.approx(plain.validate(plain.ema.module), abs=0.03)


def test_a_compiled_twin_follows_its_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own front end; what its C++ compiler makes of the graph is torch's business."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: original(module, backend=backend))
    _, expected = steps(tmp_path)
    _, found = steps(tmp_path, train={"compile": True})
    assert graphs
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Masks(TorchDispatchMode):
    """Records for which of (input, weight, bias) each convolution computes a gradient."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append(list(args[-1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("train", [{}, {"fold_norms": True}])
def test_an_attack_computes_no_gradient_of_a_weight(tmp_path: Path, train: dict[str, Any]) -> None:
    job = Run(tiny_recipe(train=train), tmp_path, CPU)
    pixels, labels = job.train_images.batch(range(8))
    with Masks() as masks, job._attacked(job.model) as seen:
        job.method(seen, pixels, labels, torch.Generator().manual_seed(0))
    assert masks.seen
    assert all(mask == [True, False, False] for mask in masks.seen)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_keeps_the_attack_in_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amp: str, norm: str
) -> None:
    threat = Threat(norm, 0.1 if norm == "Linf" else 1.0)  # type: ignore[arg-type]
    made: list[Tensor] = []
    original = pgd

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        made.append(original(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(methods, "pgd", spy)
    sections: dict[str, dict[str, Any]] = {"train": {"amp": amp}, "threat": {"norm": norm, "eps": threat.eps}}
    job, losses = steps(tmp_path, **sections)
    pixels, _ = job.train_images.batch(range(32))
    assert all(loss.isfinite() for loss in losses)
    for images in made:
        assert images.dtype == torch.float32
        assert images.min() >= 0
        assert images.max() <= 1
        delta = (images - pixels).flatten(1)
        size = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
        assert (size <= threat.eps * (1 + 1e-5)).all()
        assert size.mean() > 0.3 * threat.eps


def test_the_scale_of_float16_is_kept_with_the_state(tmp_path: Path) -> None:
    recipe = tiny_recipe(train={"amp": "fp16"})
    job = Run(recipe, tmp_path, CPU)
    job.scaler.scale(torch.ones(1))  # it has no scale before its first use
    job.scaler.update(512.0)
    job._save()
    again = Run(recipe, tmp_path, CPU)
    again.start()
    assert again.scaler.get_scale() == 512.0


class Steep(nn.Module):
    """Two logits, `slope` times two pixels, on their way through float16."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2].half() * self.slope


def test_a_gradient_that_is_no_number_moves_nothing_out_of_range() -> None:
    pixels, labels, threat = torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64), Threat("L2", 0.5)
    for slope in (float("inf"), float("nan")):
        attacked = pgd(Scaled(Steep(slope)), pixels, labels, threat, steps=3, step_size=0.2)
        assert attacked.isfinite().all()
        assert ((attacked - pixels).flatten(1).norm(dim=1) <= 0.5 + 1e-6).all()


def test_a_small_gradient_arrives() -> None:
    """A gradient of 2e-8 is nothing in float16, whose smallest number is 6e-8."""
    found = []
    for network in (Steep(1.0), Scaled(Steep(1.0))):
        x = torch.full((1, 3, 2, 2), 0.5, requires_grad=True)
        (gradient,) = torch.autograd.grad((network(x).float() * 2e-8).sum(), x)
        found.append(gradient.abs().max().item())
    assert found == [0, pytest.approx(1024 * 2e-8, rel=0.01)]


def test_checkpointing_gives_the_same_gradients(tmp_path: Path) -> None:
    plain, expected = steps(tmp_path)
    saving, found = steps(tmp_path, train={"grad_checkpointing": True})
    assert saving.model.get_submodule("backbone").grad_checkpointing
    assert torch.equal(torch.stack(found), torch.stack(expected))
    for (name, a), b in zip(
        plain.model.state_dict().items(), saving.model.state_dict().values(), strict=True
    ):
        if "num_batches_tracked" not in name:
            assert torch.equal(a, b), name


def test_a_network_without_checkpointing_says_so(tmp_path: Path) -> None:
    recipe = parse({"model": {"name": "dla34_sparta"}, "train": {"grad_checkpointing": True}})
    with pytest.raises(UnsupportedModel, match="gradient checkpointing"):
        Run(recipe, tmp_path, CPU)
