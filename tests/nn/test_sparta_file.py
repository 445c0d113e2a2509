"""Saving, loading and freezing Sparta functions, and refused files."""

from __future__ import annotations

import copy
import json
import zipfile
from functools import cache
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from robust_export.errors import SpartaMismatch
from robust_export.nn.models import create_model
from robust_export.nn.pixel_classifier import PixelClassifier
from robust_export.nn.replace import PerWidth, replace_activations
from robust_export.nn.sparta import Sparta, sparta_modules
from robust_export.nn.sparta_file import (
    FILE_FORMAT,
    freeze_sparta,
    load_sparta,
    save_sparta,
    sparta_table,
)
from robust_export.recipe.schema import Sharing

NARROW = (4, 8, 12, 16)  # channels of a ResNet's four stages, for speed


def resnet(
    name: str, share: Sharing = "width", kernel_size: int = 3, widths: tuple[int, ...] = NARROW
) -> PixelClassifier:
    """Return a new Sparta network with seeded random weights."""
    return copy.deepcopy(cached_resnet(name, share, kernel_size, widths))


@cache
def cached_resnet(name: str, share: Sharing, kernel_size: int, widths: tuple[int, ...]) -> PixelClassifier:
    torch.manual_seed(0)
    return create_model(f"{name}_sparta", share=share, kernel_size=kernel_size, image_size=8, channels=widths)


def randomise_gates(module: nn.Module, seed: int = 1) -> nn.Module:
    """Give every gate random values; return the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gate in sparta_modules(module).values():
            gate.weight.copy_(torch.randn(gate.weight.shape, generator=generator))
            gate.bias.copy_(torch.randn(gate.bias.shape, generator=generator))
    return module


def gate_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of the Sparta function's tensors."""
    return {
        f"{key}.{name}": tensor.detach().clone()
        for key, gate in sparta_table(module).items()
        for name, tensor in gate.named_parameters()
    }


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_keys_are_widths() -> None:
    assert list(sparta_table(resnet("r18"))) == ["64", "4", "8", "12", "16"]  # the stem's first


def test_keys_are_sites_without_sharing() -> None:
    table = sparta_table(resnet("resnet10t", share="site"))
    assert "backbone.layer1.0.act1" in table
    assert "backbone.layer1.0.act2" in table


@pytest.mark.parametrize("share", ["width", "site"])
def test_round_trip(share: Sharing, tmp_path: Path) -> None:
    source = randomise_gates(resnet("resnet10t", share))
    target = resnet("resnet10t", share)
    assert save_sparta(source, tmp_path / "s.safetensors") == tmp_path / "s.safetensors"
    load_sparta(target, tmp_path / "s.safetensors")
    assert_same(gate_tensors(target), gate_tensors(source))
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(target.eval()(x), source.eval()(x))


def test_transfer_to_deeper_network(tmp_path: Path) -> None:
    source, target = randomise_gates(resnet("r18")), resnet("r34")
    others = {name: tensor.clone() for name, tensor in target.named_parameters() if ".act" not in name}
    load_sparta(target, save_sparta(source, tmp_path / "s.safetensors"))
    assert_same(gate_tensors(target), gate_tensors(source))
    x = torch.randn(1, 4, 5, 5)
    first = source.get_submodule("backbone.layer1.0.act1")
    last = target.get_submodule("backbone.layer1.2.act2")
    assert torch.equal(last(x), first(x))
    now = dict(target.named_parameters())
    assert_same({name: now[name].detach() for name in others}, others)  # nothing else changed


def test_widths_the_network_lacks_are_ignored(tmp_path: Path) -> None:
    source = randomise_gates(nn.ModuleList([Sparta(4), Sparta(8), Sparta(16)]))
    target = nn.ModuleList([Sparta(16), Sparta(4)])
    load_sparta(target, save_sparta(source, tmp_path / "s.safetensors"))
    saved = gate_tensors(source)
    assert_same(gate_tensors(target), {name: saved[name] for name in gate_tensors(target)})


def test_module_on_several_widths(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.act(self.two(self.act(self.one(x))))
            return result

    source, target = Net(), Net()
    for network in (source, target):
        replace_activations(network, share="site")
        assert isinstance(network.act, PerWidth)
    load_sparta(target, save_sparta(randomise_gates(source), tmp_path / "s.safetensors"))
    assert_same(gate_tensors(target), gate_tensors(source))


def test_file_holds_only_the_gates(tmp_path: Path) -> None:
    source = randomise_gates(resnet("r18"))
    path = save_sparta(source, tmp_path / "new" / "s.safetensors")  # the folder is created
    content = path.read_bytes()
    assert not zipfile.is_zipfile(path)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": FILE_FORMAT, "version": "1", "share": "width"}
    assert header.keys() == gate_tensors(source).keys()
    assert len(content) == 8 + length + sum(4 * tensor.numel() for tensor in gate_tensors(source).values())


def test_save_replaces_the_file_atomically(tmp_path: Path) -> None:
    path = save_sparta(randomise_gates(resnet("r18")), tmp_path / "s.safetensors")
    newer = randomise_gates(resnet("r18"), seed=2)
    save_sparta(newer, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.safetensors"]
    assert_same(safetensors.torch.load_file(path), gate_tensors(newer))


# --- Training, sharing and freezing ---


def step(network: nn.Module) -> None:
    """Take two steps of SGD with momentum on random batches."""
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.5, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        logits = network.train()(torch.rand(4, 3, 8, 8))
        nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()


def test_sites_still_share_after_training() -> None:
    network = resnet("r18")
    before = gate_tensors(network)
    step(network)
    after = gate_tensors(network)
    assert all(not torch.equal(after[name], before[name]) for name in before)
    sites = [child for _, child in network.named_modules(remove_duplicate=False) if isinstance(child, Sparta)]
    assert len(sites) == 17
    assert len({id(site) for site in sites}) == len(sparta_modules(network)) == 5
    state = network.state_dict()
    for block in ("0.act1", "0.act2", "1.act1", "1.act2"):
        assert torch.equal(state[f"backbone.layer2.{block}.weight"], after["8.weight"])


def test_freeze_excludes_gates_from_training() -> None:
    network = randomise_gates(resnet("r18"))
    before, convolution = (
        gate_tensors(network),
        network.get_parameter("backbone.conv1.weight").detach().clone(),
    )
    freeze_sparta(network)
    step(network)
    assert_same(gate_tensors(network), before)
    for gate in sparta_modules(network).values():
        assert gate.weight.grad is None
        assert gate.bias.grad is None
    assert not torch.equal(network.get_parameter("backbone.conv1.weight"), convolution)


def test_frozen_gates_propagate_gradients() -> None:
    gate = randomise_gates(nn.Sequential(Sparta(2)))
    freeze_sparta(gate)
    x = torch.rand(1, 2, 3, 3, requires_grad=True)
    gate(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


# --- Refused files and networks ---


def load_error(target: nn.Module, path: Path) -> str:
    """Return the message of the error for `path`; check that nothing was loaded."""
    before = gate_tensors(target)
    with pytest.raises(SpartaMismatch) as caught:
        load_sparta(target, path)
    assert_same(gate_tensors(target), before)
    return str(caught.value)


def test_error_lists_widths_of_both_sides(tmp_path: Path) -> None:
    path = save_sparta(randomise_gates(resnet("r18")), tmp_path / "s.safetensors")
    message = load_error(randomise_gates(resnet("r18", widths=(4, 8, 10, 20)), seed=2), path)
    assert "lacks 10, 20\n" in message
    assert "network has:  64, 4, 8, 10, 20\n" in message
    assert set(message.split("function has: ")[1].splitlines()[0].split(", ")) == {"64", "4", "8", "12", "16"}
    assert str(path) in message


@pytest.mark.parametrize(("saved", "loaded"), [("width", "site"), ("site", "width")])
def test_other_sharing(saved: Sharing, loaded: Sharing, tmp_path: Path) -> None:
    path = save_sparta(randomise_gates(resnet("resnet10t", saved)), tmp_path / "s.safetensors")
    message = load_error(resnet("resnet10t", loaded), path)
    assert "network has:" in message
    assert "function has:" in message
    assert "with the same sparta.share" in message


@pytest.mark.parametrize("kernels", [(5, 5), (3, 5), (1, 3)])
def test_other_kernel_size(kernels: tuple[int, int], tmp_path: Path) -> None:
    source = randomise_gates(nn.ModuleList([Sparta(4, kernels[0]), Sparta(8, kernels[1])]))
    path = save_sparta(source, tmp_path / "s.safetensors")
    message = load_error(nn.ModuleList([Sparta(4), Sparta(8)]), path)
    wrong = "4.weight" if kernels[0] != 3 else "8.weight"
    assert wrong in message
    assert "kernel size" in message


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_missing_tensor(part: str, tmp_path: Path) -> None:
    tensors = gate_tensors(randomise_gates(nn.ModuleList([Sparta(4)])))
    del tensors[f"4.{part}"]
    path = tmp_path / "s.safetensors"
    safetensors.torch.save_file(tensors, path, {"format": FILE_FORMAT, "version": "1"})
    assert f"4.{part} is missing" in load_error(nn.ModuleList([Sparta(4)]), path)


def test_weights_without_sparta_metadata(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"4.weight": torch.zeros(4, 1, 3, 3), "4.bias": torch.zeros(4)}, path)
    message = load_error(nn.ModuleList([Sparta(4)]), path)
    assert "is not a Sparta function" in message
    assert FILE_FORMAT in message


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_file(length: int, tmp_path: Path) -> None:
    network = randomise_gates(nn.ModuleList([Sparta(4), Sparta(8)]))
    path = save_sparta(network, tmp_path / "s.safetensors")
    path.write_bytes(path.read_bytes()[:length])
    assert f"{path} cannot be read as a Sparta function" in load_error(network, path)


def test_unreadable_file(tmp_path: Path) -> None:
    network = nn.ModuleList([Sparta(4)])
    (tmp_path / "text").write_text("not tensors at all, but more than eight bytes")
    for path in (tmp_path / "text", tmp_path / "missing", tmp_path):
        assert f"{path} cannot be read as a Sparta function" in load_error(network, path)


def test_network_without_sparta(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    path = save_sparta(nn.ModuleList([Sparta(4)]), tmp_path / "s.safetensors")
    with pytest.raises(SpartaMismatch, match="no Sparta activation"):
        load_sparta(network, path)
    with pytest.raises(SpartaMismatch, match="no Sparta activation"):
        save_sparta(network, tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()
    freeze_sparta(network)  # has no effect
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_other_file_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "newer.safetensors"
    metadata = {"format": FILE_FORMAT, "version": "2", "share": "width"}
    safetensors.torch.save_file({"4.bias": torch.zeros(4)}, path, metadata)
    with pytest.raises(SpartaMismatch, match="version 2"):
        load_sparta(nn.Sequential(Sparta(4)), path)


def test_numeric_site_names_are_no_widths(tmp_path: Path) -> None:
    path = save_sparta(nn.Sequential(nn.Identity(), Sparta(4), Sparta(4)), tmp_path / "s.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata()["share"] == "site"
