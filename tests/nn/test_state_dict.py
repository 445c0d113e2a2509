"""Listing a network's tensors, shared ones once, and loading them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from robust_export.errors import InvalidValue
from robust_export.nn.models import create_model
from robust_export.nn.state_dict import load_tensors, tensors

NARROW: dict[str, Any] = {"channels": (4, 8, 12, 16)}  # of a ResNet's four stages, for speed


def test_shared_tensors_are_listed_once() -> None:
    model = create_model("r18_sparta", image_size=8, **NARROW)
    listed = tensors(model)
    pointers = [tensor.data_ptr() for tensor in listed.values() if tensor.numel()]
    assert len(pointers) == len(set(pointers))
    assert {id(tensor) for tensor in listed.values()} == {
        id(tensor) for tensor in [*model.parameters(), *model.buffers()]
    }
    assert sum(".act" in name for name in listed) == 2 * 5  # one weight and one bias per width
    assert "backbone.bn1.running_mean" in listed
    assert len(model.state_dict()) > len(listed)  # state_dict() repeats shared tensors


def test_load_tensors() -> None:
    torch.manual_seed(0)
    source = create_model("r18_sparta", image_size=8, **NARROW)
    target = create_model("r18_sparta", image_size=8, **NARROW)
    with torch.no_grad():
        for tensor in tensors(source).values():
            tensor.add_(1)
    load_tensors(target, {name: tensor.clone() for name, tensor in tensors(source).items()})
    for name, tensor in tensors(target).items():
        assert torch.equal(tensor, tensors(source)[name]), name
    pixels = torch.rand(2, 3, 8, 8)
    assert torch.equal(source.eval()(pixels), target.eval()(pixels))


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_load_tensors_refuses_mismatch(fault: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    saved = {name: tensor + 1 for name, tensor in tensors(model).items()}
    before = {name: tensor.clone() for name, tensor in tensors(model).items()}
    if fault == "missing":
        del saved["1.running_var"]
    elif fault == "extra":
        saved["2.weight"] = torch.zeros(1)
    else:
        saved["1.running_var"] = torch.zeros(5)
    expected = {
        "missing": "1.running_var",
        "extra": "2.weight",
        "shape": r"1.running_var is \[5\], expected \[4\]",
    }
    with pytest.raises(InvalidValue, match=expected[fault]):
        load_tensors(model, saved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(model).items())
