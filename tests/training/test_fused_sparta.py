"""Sparta by the fused kernel in training: values, gradients, unsupported inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from robust_export.errors import InvalidValue
from robust_export.nn.models import create_model
from robust_export.nn.sparta import sparta, sparta_modules
from robust_export.training import fused_sparta as fused
from robust_export.training.fused_sparta import FusedSparta, fuse_sparta, fused_sparta
from robust_export.training.run import train
from tests.training.trainers import quick_recipe

CHANNELS_LAST = torch.channels_last


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return a list that records each call of the library: its name and the number of null pointers."""
    calls: list[tuple[str, int]] = []
    original = fused._call_kernel

    def record(name: str, *tensors: Tensor | None) -> None:
        calls.append((name, sum(tensor is None for tensor in tensors)))
        original(name, *tensors)  # type: ignore[arg-type]

    monkeypatch.setattr(fused, "_call_kernel", record)
    return calls


@pytest.fixture(autouse=True)
def _kernel(library: Path) -> None:
    """Use the library in every test."""


def random_inputs(shape: tuple[int, int, int, int], k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    c = shape[1]
    sizes = (shape, (c, 1, k, k), (c,))
    x, weight, bias = (torch.randn(size, generator=generator) for size in sizes)
    return x.contiguous(memory_format=CHANNELS_LAST), weight / k, bias


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*(st.integers(1, most) for most in (3, 35, 9, 9))),
    k=st.sampled_from((1, 3, 5, 7)),
    threads=st.integers(1, 4),
)
def test_values_and_gradients_equal_sparta(shape: Any, k: int, threads: int) -> None:
    inputs = random_inputs(shape, k)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = values_and_gradients(FusedSparta.apply, inputs, gradient)
    finally:
        torch.set_num_threads(before)
    exact = values_and_gradients(sparta, tuple(tensor.double() for tensor in inputs), gradient.double())
    for mine, theirs in zip(found, exact, strict=True):
        assert mine.shape == theirs.shape
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=5e-6 * scale)


def values_and_gradients(function: Any, inputs: tuple[Tensor, ...], gradient: Tensor) -> list[Tensor]:
    """Return y and the gradients in x, weight and bias."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient)]


@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, torch.contiguous_format])
def test_gradient_in_any_memory_format(memory_format: torch.memory_format) -> None:
    inputs = random_inputs((2, 12, 5, 6), 3)
    gradient = torch.randn(2, 12, 5, 6).contiguous(memory_format=memory_format)
    for mine, theirs in zip(
        values_and_gradients(FusedSparta.apply, inputs, gradient),
        values_and_gradients(sparta, inputs, gradient),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert FusedSparta.apply(*inputs).is_contiguous(memory_format=CHANNELS_LAST)


def test_kernel_skips_what_is_not_needed(calls: list[tuple[str, int]]) -> None:
    x, weight, bias = random_inputs((2, 8, 4, 4), 3)
    fused_sparta(x.requires_grad_(), weight, bias).sum().backward()
    with torch.no_grad():
        fused_sparta(x, weight, bias)
    assert calls == [("sparta_forward", 0), ("sparta_backward", 1), ("sparta_forward", 1)]


def test_nan_spreads_as_in_sparta() -> None:
    x, weight, bias = random_inputs((1, 8, 5, 5), 3)
    x[0, 3, 2, 2] = torch.nan
    gradient = torch.ones_like(x)
    for mine, theirs in zip(
        values_and_gradients(FusedSparta.apply, (x, weight, bias), gradient),
        values_and_gradients(sparta, (x, weight, bias), gradient),
        strict=True,
    ):
        assert torch.equal(mine.isnan(), theirs.isnan())


def test_double_backward_equals_sparta() -> None:
    inputs = [tensor.requires_grad_() for tensor in random_inputs((1, 4, 3, 3), 3)]

    def second_derivatives(function: Any) -> list[Tensor]:
        (grad_x,) = torch.autograd.grad(function(*inputs).square().sum(), inputs[0], create_graph=True)
        return list(torch.autograd.grad(grad_x.square().sum(), inputs))

    for mine, theirs in zip(second_derivatives(FusedSparta.apply), second_derivatives(sparta), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["contiguous", "float64", "k = 9", "autocast"])
def test_unsupported_inputs_use_sparta(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_call_kernel", lambda *_: pytest.fail("called the kernel"))
    x, weight, bias = random_inputs((2, 8, 6, 6), 9 if case == "k = 9" else 3)
    if case == "contiguous":
        x = x.contiguous()
    if case == "float64":
        x, weight, bias = x.double(), weight.double(), bias.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert torch.equal(fused_sparta(x, weight, bias), sparta(x, weight, bias))


def test_fused_training_equals_training_up_to_rounding(
    images: Path, tmp_path: Path, calls: list[tuple[str, int]]
) -> None:
    weights = {}
    for name, is_fused in (("plain", False), ("fused", True)):
        recipe = quick_recipe(images, train={"fused": is_fused})
        bundle = train(recipe, tmp_path / name, device="cpu")
        weights[name] = load_flat(bundle.file("weights.safetensors"))
        assert bool(calls) == is_fused
    assert {name for name, _ in calls} == {"sparta_forward", "sparta_backward"}
    difference = (weights["plain"] - weights["fused"]).norm() / weights["plain"].norm()
    assert 0 < difference < 1e-2


def load_flat(path: Path) -> Tensor:
    """Return all tensors of the file as one vector."""
    return torch.cat([tensor.float().flatten() for _, tensor in sorted(load_file(path).items())])


def test_missing_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fused._library.cache_clear()
    monkeypatch.setenv("ROBUST_EXPORT_ORT_LIBRARY", "")
    network = create_model("resnet10t_sparta", image_size=32)
    with pytest.raises(InvalidValue, match=r"train\.fused is true, but there is no fused kernel"):
        fuse_sparta(network)
    fuse_sparta(create_model("resnet10t_relu", image_size=32))
    fused._library.cache_clear()


def test_fuse_sparta_keeps_the_state_dict() -> None:
    network = create_model("resnet10t_sparta", image_size=32)
    names = list(network.state_dict())
    fuse_sparta(network)
    assert list(network.state_dict()) == names
    assert all(module.function is fused_sparta for module in sparta_modules(network).values())
