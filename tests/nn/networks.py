"""Small networks for the tests of sites and replacement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A convolution to 4 channels, followed by the function `rest`, which can use the other children."""

    def __init__(self, rest: Callable[[Any, Tensor], Tensor], **children: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.rest = rest
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self, self.conv(x))


def with_activation(act: nn.Module) -> Net:
    """Return a convolution followed by `act`."""
    return Net(lambda net, x: net.act(x), act=act)


def network(name: str, **options: Any) -> nn.Module:
    """Return a timm network with seeded weights, 5 classes, in eval mode."""
    torch.manual_seed(0)
    result: nn.Module = timm.create_model(name, num_classes=5, **options).eval()
    return result
