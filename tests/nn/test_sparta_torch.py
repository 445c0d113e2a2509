"""Sparta with PyTorch's memory formats, autocast, torch.compile and torch.export."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import nn

from robust_export.nn.sparta import sparta
from tests.nn.test_sparta import DTYPES, assert_near, closed_form, example, gates


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_channels_last_is_kept(dtype: torch.dtype) -> None:
    x, weight, bias = example((2, 4, 6, 5), dtype=dtype)
    result = sparta(x.to(memory_format=torch.channels_last), weight, bias)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert not result.is_contiguous()
    assert_near(result, closed_form(x, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    x, weight, bias = example(dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        result = sparta(x, weight, bias)
    assert result.dtype == dtype
    assert torch.equal(result, sparta(x, weight, bias))


def test_compiles_to_one_graph() -> None:
    module = gates(3)
    x = example()[0].requires_grad_()
    results, gradients = [], []
    for function in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        results.append(function(x))
        gradients.append(torch.autograd.grad(results[-1].square().sum(), [x, *module.parameters()]))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles with g++")
@pytest.mark.filterwarnings("default")  # warnings of the compiler
def test_compiles_to_machine_code() -> None:
    x, weight, bias = example()
    with torch.no_grad():
        compiled = torch.compile(sparta, fullgraph=True, options={"compile_threads": 1})
        torch.testing.assert_close(compiled(x, weight, bias), sparta(x, weight, bias))


def test_exports_with_a_dynamic_batch() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), gates(4)).eval()
    dynamic: Any = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=dynamic)
    for batch in (1, 5):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(program.module()(x), network(x))
