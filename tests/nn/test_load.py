"""Loading the network of a bundle."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save

from robust_export.bundle import Bundle
from robust_export.errors import BundleError
from robust_export.nn.load import load
from robust_export.nn.state_dict import tensors


def test_load_by_path_and_bundle(bundle: Bundle) -> None:
    saved = load_file(bundle.file("weights.safetensors"))
    for model in (load(bundle), load(bundle.path), load(str(bundle.path))):
        assert not model.training
        assert tensors(model).keys() == saved.keys()
        assert all(torch.equal(tensor, saved[name]) for name, tensor in tensors(model).items())


def test_weights_that_do_not_fit_the_recipe(bundle: Bundle) -> None:
    saved = load_file(bundle.file("weights.safetensors"))
    saved.pop("backbone.fc.bias")
    bundle.write({"weights.safetensors": save(saved)}, "weights")
    with pytest.raises(BundleError, match=r"weights\.safetensors does not fit.*backbone\.fc\.bias"):
        load(bundle.path)


def test_damaged_weights(bundle: Bundle) -> None:
    bundle.write({"weights.safetensors": b"no tensors, but more than eight bytes"}, "weights")
    with pytest.raises(BundleError, match=r"weights\.safetensors does not fit"):
        load(bundle.path)
