"""Sparta's gradient: bit-identical to autograd's, with half the saved tensors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robust_export.nn.sparta import sparta, sparta_product


def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return relu(x) * (2 sigmoid(w (*) x + b)), differentiated by autograd."""
    preactivation = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
    return F.relu(x) * (2 * torch.sigmoid(preactivation))


def example(kernel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 8, 7, 9), (8, 1, kernel, kernel), (8,))
    x, weight, bias = (2 * torch.randn(s, generator=generator, dtype=dtype) for s in shapes)
    x[0, 0, :2] = 0  # relu's gradient is 0 there
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_equal_autograd(
    kernel: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    x, weight, bias = example(kernel, dtype)
    given = x.detach().contiguous(memory_format=layout).requires_grad_()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    results = [f(given, weight, bias) for f in (formula, sparta)]
    assert torch.equal(*results)
    gradients = [torch.autograd.grad(y, [given, weight, bias], upstream) for y in results]
    for expected, received in zip(*gradients, strict=True):
        assert torch.equal(expected, received)


def test_gradients_equal_finite_differences() -> None:
    x, preactivation = (torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(sparta_product, (x, preactivation))
    assert torch.autograd.gradgradcheck(sparta_product, (x, preactivation))


def saved_bytes(y: Tensor) -> int:
    """Return the bytes of tensors shaped like `y` that its autograd graph saves, shared memory once."""
    seen: dict[int, int] = {}

    def visit(node: object) -> None:
        for name in dir(node):
            if name.startswith("_saved_") or name == "saved_tensors":
                value = getattr(node, name)
                for tensor in value if isinstance(value, tuple) else (value,):
                    if isinstance(tensor, Tensor) and tensor.ndim == 4 and tensor.shape == y.shape:
                        seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        for child, _ in getattr(node, "next_functions", ()):
            if child is not None:
                visit(child)

    visit(y.grad_fn)
    return sum(seen.values())


def test_half_the_memory_is_saved_for_backward() -> None:
    given = example(3, torch.float32)
    assert saved_bytes(sparta(*given)) * 2 == saved_bytes(formula(*given))


def test_no_grad_saves_nothing() -> None:
    with torch.no_grad():
        assert sparta(*example(3, torch.float32)).grad_fn is None
