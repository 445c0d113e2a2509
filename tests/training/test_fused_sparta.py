"""Sparta by the fused kernel in training: its numbers, where it is used, and what it refuses."""

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
from robust_export.training.fused_sparta import Fused, fuse_sparta, fused_sparta
from robust_export.training.run import train
from tests.conftest import tiny_recipe

LAST = torch.channels_last


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The names of what is called in the library, and how many planes are left out."""
    seen: list[tuple[str, int]] = []
    run = fused._run

    def record(name: str, *given: Tensor | None) -> None:
        seen.append((name, sum(plane is None for plane in given)))
        run(name, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(fused, "_run", record)
    return seen


@pytest.fixture(autouse=True)
def _kernel(library: Path) -> None:
    """Every test here has the library."""


def planes(shape: tuple[int, int, int, int], k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    c = shape[1]
    sizes = (shape, (c, 1, k, k), (c,))
    x, weight, bias = (torch.randn(size, generator=generator) for size in sizes)
    return x.contiguous(memory_format=LAST), weight / k, bias


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*(st.integers(1, most) for most in (3, 35, 9, 9))),
    k=st.sampled_from((1, 3, 5, 7)),
    threads=st.integers(1, 4),
)
def test_it_computes_sparta_and_its_gradients(shape: Any, k: int, threads: int) -> None:
    given, exact = planes(shape, k), []
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = results(Fused.apply, given, gradient)
    finally:
        torch.set_num_threads(before)
    exact = results(sparta, tuple(tensor.double() for tensor in given), gradient.double())
    for mine, theirs in zip(found, exact, strict=True):
        assert mine.shape == theirs.shape
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=5e-6 * scale)


def results(function: Any, given: tuple[Tensor, ...], gradient: Tensor) -> list[Tensor]:
    learnt = [tensor.clone().requires_grad_() for tensor in given]
    y = function(*learnt)
    return [y.detach(), *torch.autograd.grad(y, learnt, gradient)]


@pytest.mark.parametrize("memory_format", [LAST, torch.contiguous_format])
def test_a_gradient_in_any_order_is_right(memory_format: torch.memory_format) -> None:
    given = planes((2, 12, 5, 6), 3)
    gradient = torch.randn(2, 12, 5, 6).contiguous(memory_format=memory_format)
    for mine, theirs in zip(
        results(Fused.apply, given, gradient), results(sparta, given, gradient), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert Fused.apply(*given).is_contiguous(memory_format=LAST)


def test_an_attack_asks_for_no_gradient_of_a_weight(calls: list[tuple[str, int]]) -> None:
    x, weight, bias = planes((2, 8, 4, 4), 3)
    fused_sparta(x.requires_grad_(), weight, bias).sum().backward()
    with torch.no_grad():
        fused_sparta(x, weight, bias)
    assert calls == [("sparta_forward", 0), ("sparta_backward", 1), ("sparta_forward", 1)]


def test_not_a_number_spreads_as_in_sparta() -> None:
    x, weight, bias = planes((1, 8, 5, 5), 3)
    x[0, 3, 2, 2] = torch.nan
    gradient = torch.ones_like(x)
    for mine, theirs in zip(
        results(Fused.apply, (x, weight, bias), gradient),
        results(sparta, (x, weight, bias), gradient),
        strict=True,
    ):
        assert torch.equal(mine.isnan(), theirs.isnan())


def test_its_gradient_can_be_differentiated() -> None:
    given = [tensor.requires_grad_() for tensor in planes((1, 4, 3, 3), 3)]

    def curvature(function: Any) -> list[Tensor]:
        (slope,) = torch.autograd.grad(function(*given).square().sum(), given[0], create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), given))

    for mine, theirs in zip(curvature(Fused.apply), curvature(sparta), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["order", "float64", "k = 9", "autocast"])
def test_what_it_does_not_take_goes_the_usual_way(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_run", lambda *_: pytest.fail("the kernel was called"))
    x, weight, bias = planes((2, 8, 6, 6), 9 if case == "k = 9" else 3)
    if case == "order":
        x = x.contiguous()
    if case == "float64":
        x, weight, bias = x.double(), weight.double(), bias.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert torch.equal(fused_sparta(x, weight, bias), sparta(x, weight, bias))


def test_a_network_learns_with_it(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    weights = {}
    for name, is_fused in (("usual", False), ("fused", True)):
        recipe = tiny_recipe(train={"epochs": 1, "fused": is_fused})
        bundle = train(recipe, tmp_path / name, device="cpu")
        weights[name] = torch.cat([t.flatten() for t in load(bundle.file("weights.safetensors"))])
        assert bool(calls) == is_fused
    assert {name for name, _ in calls} == {"sparta_forward", "sparta_backward"}
    gap = (weights["usual"] - weights["fused"]).norm() / weights["usual"].norm()
    assert 0 < gap < 1e-2


def load(path: Path) -> list[Tensor]:
    return [tensor.float() for _, tensor in sorted(load_file(path).items())]


def test_without_the_kernel_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fused._library.cache_clear()
    monkeypatch.setenv("ROBUST_EXPORT_ORT_LIBRARY", "")
    network = create_model("resnet10t_sparta", image_size=32)
    with pytest.raises(InvalidValue, match=r"train\.fused is true, and there is no fused kernel"):
        fuse_sparta(network)
    fuse_sparta(create_model("resnet10t_relu", image_size=32))
    fused._library.cache_clear()


def test_modules_stay_what_they_are_to_an_export(library: Path) -> None:
    network = create_model("resnet10t_sparta", image_size=32)
    names = list(network.state_dict())
    fuse_sparta(network)
    assert list(network.state_dict()) == names
    assert all(module.function is fused_sparta for module in sparta_modules(network).values())
