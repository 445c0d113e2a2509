"""Sparta against its closed form, its properties, and refused arguments."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import robust_export
from robust_export.errors import InvalidValue
from robust_export.nn.sparta import Sparta, sparta

TOLERANCES = {  # (relative, absolute); half precision is rounded once: half a unit in the last place
    torch.float32: (1e-5, 1e-6),
    torch.float16: (1.02 * 2**-11, 1e-7),
    torch.bfloat16: (1.02 * 2**-8, 1e-7),
}
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
DTYPES = list(TOLERANCES)
KERNELS = (1, 3, 5, 7)
# with H or W smaller than the kernel, one channel, or one image
SHAPES = ((2, 3, 8, 9), (1, 1, 5, 5), (1, 4, 1, 1), (3, 2, 1, 6), (1, 2, 7, 2), (2, 5, 2, 3))

Array = npt.NDArray[np.float64]


def closed_form(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return relu(x) * 2 / (1 + exp(-(w (*) x + b))) in float64, from shifted slices."""
    inputs: Array = x.detach().double().numpy()
    kernels: Array = weight.detach().double().numpy()
    height, width = inputs.shape[2:]
    kernel = kernels.shape[-1]
    padding = kernel // 2
    padded = np.pad(inputs, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    preactivation = np.zeros_like(inputs) + bias.detach().double().numpy()[:, None, None]
    for i in range(kernel):
        for j in range(kernel):
            preactivation += kernels[:, 0, i, j, None, None] * padded[:, :, i : i + height, j : j + width]
    return torch.from_numpy(np.maximum(inputs, 0) * 2 / (1 + np.exp(-preactivation)))


def example(
    shape: tuple[int, ...] = (2, 3, 8, 9), kernel: int = 3, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, weight and bias from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(shape[1], 1, kernel, kernel, generator=generator) / kernel
    return x.to(dtype), weight.to(dtype), torch.randn(shape[1], generator=generator).to(dtype)


def gates(channels: int, kernel: int = 3) -> Sparta:
    """Return a module with random gate values."""
    module = Sparta(channels, kernel)
    _, weight, bias = example((1, channels, 1, 1), kernel)
    module.load_state_dict({"weight": weight, "bias": bias})
    return module


def assert_near(result: Tensor, expected: Tensor) -> None:
    relative, absolute = TOLERANCES[result.dtype]
    torch.testing.assert_close(result.double(), expected.double(), rtol=relative, atol=absolute)


def as_bits(x: Tensor) -> Tensor:
    return x.contiguous().view(BITS[x.dtype])


# --- The formula ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_closed_form(shape: tuple[int, ...], kernel: int, dtype: torch.dtype) -> None:
    x, weight, bias = example(shape, kernel, dtype)
    result = sparta(x, weight, bias)
    assert result.dtype == dtype
    assert_near(result, closed_form(x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_gate_on_half_precision_input(dtype: torch.dtype) -> None:
    """The gate's parameters are not rounded to the dtype of x."""
    _, weight, bias = example()
    x = example(dtype=dtype)[0]
    result = sparta(x, weight, bias)
    assert result.dtype == dtype
    assert_near(result, closed_form(x, weight, bias))


@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients(kernel: int) -> None:
    x, weight, bias = (tensor.double() for tensor in example((2, 2, 3, 4), kernel))
    x = x.sign() * (x.abs() + 0.1)  # relu has no derivative at 0
    inputs = tuple(tensor.requires_grad_() for tensor in (x, weight, bias))
    assert torch.autograd.gradcheck(sparta, inputs)
    assert torch.autograd.gradgradcheck(sparta, inputs)


# --- Relation to ReLU, range of the gate ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("channels", [1, 4])
def test_zero_weight_and_bias_is_exactly_relu(channels: int, kernel: int, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    denormal = info.smallest_normal / 4
    edges = [0.0, -0.0, info.max, info.min, info.tiny, -info.tiny, denormal, -denormal, 1 / 3, -1 / 3]
    edges += [info.smallest_normal * info.eps, info.max / 2, info.max * (1 - info.eps), 1 + info.eps, -1, 1]
    scale = 10 ** torch.linspace(-4, 4, 240)
    x = torch.cat([torch.tensor(edges, dtype=dtype).repeat(5), (scale * torch.randn(240)).to(dtype)])
    x = x.view(2, channels, -1, 8)
    for result in (
        sparta(x, torch.zeros(channels, 1, kernel, kernel, dtype=dtype), torch.zeros(channels, dtype=dtype)),
        Sparta(channels, kernel)(x),
    ):
        assert torch.equal(as_bits(result), as_bits(F.relu(x)))


@pytest.mark.parametrize("gate", [1.0, 1.5])
def test_float16_does_not_overflow_early(gate: float) -> None:
    x = torch.full((1, 1, 4, 4), 40000.0, dtype=torch.float16)
    bias = torch.tensor([math.log(gate / (2 - gate))])  # 2 * sigmoid(bias) is the gate
    assert torch.equal(sparta(x, torch.zeros(1, 1, 3, 3), bias), (x.float() * gate).half())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gate_lies_between_0_and_2(dtype: torch.dtype) -> None:
    x, weight, bias = example((4, 3, 16, 16), dtype=dtype)
    result = sparta(x, 30 * weight, bias).float()  # saturates the gate on both sides
    positive = F.relu(x).float()
    assert (result >= 0).all()
    assert (result <= 2 * positive).all()
    assert (result[positive > 0] == 0).any() or (result < 1e-3 * positive).any()
    assert (result[positive > 0] == 2 * positive[positive > 0]).any()


# --- Relation to Swish and feature denoising; spatial attention ---


def test_kernel_of_1_is_rectified_swish() -> None:
    x, weight, bias = example(kernel=1)
    beta = weight.view(1, -1, 1, 1)
    expected = 2 * F.relu(x) * torch.sigmoid(beta * x + bias.view(1, -1, 1, 1))
    torch.testing.assert_close(sparta(x, weight, bias), expected)
    swish = 2 * F.silu(x)  # equal for beta = 1, b = 0 and positive x
    ones = torch.ones(3, 1, 1, 1)
    torch.testing.assert_close(sparta(x, ones, torch.zeros(3)), torch.where(x > 0, swish, 0))


def test_local_average_damps_an_isolated_activation() -> None:
    """Feature denoising: a value is amplified within a plateau and damped alone."""
    weight, bias = torch.full((1, 1, 3, 3), 6 / 9), torch.tensor([-3.0])
    alone, plateau = torch.zeros(1, 1, 7, 7), torch.zeros(1, 1, 7, 7)
    alone[..., 3, 3] = 1.0
    plateau[..., 1:6, 1:6] = 1.0
    kept = sparta(plateau, weight, bias)[0, 0, 3, 3].item()
    damped = sparta(alone, weight, bias)[0, 0, 3, 3].item()
    assert kept == pytest.approx(2 / (1 + math.exp(-3)))
    assert damped == pytest.approx(2 / (1 + math.exp(3 - 6 / 9)))
    assert damped < 0.2 < 1 < kept


@pytest.mark.parametrize("kernel", KERNELS)
def test_gate_depends_on_neighbourhood_only(kernel: int) -> None:
    """Changing one pixel changes the outputs within k // 2 of it, in its image and channel only."""
    _, weight, bias = example((2, 3, 9, 9), kernel)
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(1)) + 0.5
    changed = x.clone()
    changed[1, 2, 4, 4] -= 0.25
    padding = kernel // 2
    expected = torch.zeros(2, 3, 9, 9, dtype=torch.bool)
    expected[1, 2, 4 - padding : 5 + padding, 4 - padding : 5 + padding] = True
    assert torch.equal(sparta(x, weight, bias) != sparta(changed, weight, bias), expected)


def test_gate_depends_on_the_input() -> None:
    """ReLU is homogeneous (twice the input, twice the output); Sparta is not."""
    x, weight, bias = example()
    zero = torch.zeros_like(weight)
    torch.testing.assert_close(sparta(2 * x, zero, bias), 2 * sparta(x, zero, bias))
    assert not torch.allclose(sparta(2 * x, weight, bias), 2 * sparta(x, weight, bias), rtol=0.1)


# --- Edges and errors ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_nan(dtype: torch.dtype) -> None:
    x, weight, bias = example(dtype=dtype)
    x[0, 1, 3, 3] = math.nan
    result = sparta(x, weight, bias)
    assert result[0, 1, 3, 3].isnan()
    assert not result[0, 0].isnan().any()
    assert not result[1].isnan().any()


def test_empty_batch() -> None:
    assert gates(3)(torch.zeros(0, 3, 4, 5)).shape == (0, 3, 4, 5)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "expected", "received"),
    [
        ((3, 8, 8), (3, 1, 3, 3), (3,), "[N, C, H, W]", "[3, 8, 8]"),
        ((2, 3), (3, 1, 3, 3), (3,), "[N, C, H, W]", "[2, 3]"),
        ((2, 3, 8, 8, 8), (3, 1, 3, 3), (3,), "[N, C, H, W]", "[2, 3, 8, 8, 8]"),
        ((2, 3, 8, 8), (4, 1, 3, 3), (4,), "[3, 1, k, k]", "[4, 1, 3, 3]"),
        ((2, 3, 8, 8), (1, 1, 3, 3), (3,), "[3, 1, k, k]", "[1, 1, 3, 3]"),
        ((2, 3, 8, 8), (3, 3, 3, 3), (3,), "[3, 1, k, k]", "[3, 3, 3, 3]"),
        ((2, 3, 8, 8), (3, 1, 2, 2), (3,), "k odd", "[3, 1, 2, 2]"),
        ((2, 3, 8, 8), (3, 1, 0, 0), (3,), "k odd", "[3, 1, 0, 0]"),
        ((2, 3, 8, 8), (3, 1, 3, 5), (3,), "[3, 1, k, k]", "[3, 1, 3, 5]"),
        ((2, 3, 8, 8), (3, 3, 3), (3,), "[3, 1, k, k]", "[3, 3, 3]"),
        ((2, 3, 8, 8), (), (3,), "[3, 1, k, k]", "[]"),
        ((2, 3, 8, 8), (3, 1, 3, 3), (4,), "[3]", "[4]"),
        ((2, 3, 8, 8), (3, 1, 3, 3), (1,), "[3]", "[1]"),
        ((2, 3, 8, 8), (3, 1, 3, 3), (3, 1), "[3]", "[3, 1]"),
    ],
)
def test_mismatched_shapes_are_refused(
    x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...], expected: str, received: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        sparta(torch.zeros(x), torch.zeros(weight), torch.zeros(bias))
    assert expected in str(caught.value)
    assert f"received {received}" in str(caught.value)


@pytest.mark.parametrize(
    ("channels", "kernel", "fragments"),
    [(0, 3, ("at least one channel", "0")), (-1, 3, ("at least one channel", "-1"))]
    + [(4, kernel, ("odd kernel_size", str(kernel))) for kernel in (0, 2, 4, -1)],
)
def test_invalid_module_arguments(channels: int, kernel: int, fragments: tuple[str, str]) -> None:
    with pytest.raises(InvalidValue) as caught:
        Sparta(channels, kernel)
    assert all(fragment in str(caught.value) for fragment in fragments)


def test_top_level_names() -> None:
    assert robust_export.sparta is sparta
    assert robust_export.Sparta is Sparta


def test_integers_are_refused() -> None:
    with pytest.raises(InvalidValue, match="floating-point"):
        sparta(torch.ones(1, 1, 2, 2, dtype=torch.int64), torch.zeros(1, 1, 3, 3), torch.zeros(1))
