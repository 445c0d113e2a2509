"""Initial weights from timm, a file or a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robust_export.errors import UnsupportedModel
from robust_export.nn.initial_weights import load_initial_weights
from robust_export.nn.models import create_model
from robust_export.nn.pixel_classifier import PixelClassifier
from robust_export.nn.sparta import sparta_modules
from robust_export.nn.state_dict import tensors

NARROW: dict[str, Any] = {"channels": (4, 8, 12, 16)}  # of a ResNet's four stages, for speed


def pretrained(name: str, **options: Any) -> nn.Module:
    """Return a timm network of which no tensor has its initial values."""
    torch.manual_seed(3)
    network: nn.Module = timm.create_model(name, **options)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.01 * torch.rand_like(tensor))
    return network.eval()


def save(network: nn.Module, path: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return str(path)


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors(model).items()}


def init_error(model: PixelClassifier, init: str) -> str:
    """Return the message of the error for `init`; check that no tensor changed."""
    before = copy_of(model)
    with pytest.raises(UnsupportedModel) as caught:
        load_initial_weights(model, init)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(model).items())
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", NARROW),
        ("resnet10t", NARROW),
        ("resnetblur18", NARROW),  # its blur filter is a non-persistent buffer
    ],
)
def test_sparta_starts_as_pretrained_network(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    source = pretrained(name, **options)
    model = create_model(f"{name}_sparta", num_classes=1000, image_size=224, **options).eval()
    remaining = load_initial_weights(model, save(source, tmp_path / "w.safetensors"))
    gates = {f"{gate}.{part}" for gate in sparta_modules(model.backbone) for part in ("weight", "bias")}
    assert gates <= set(remaining)
    assert set(remaining) - gates <= {key for key, _ in source.named_buffers()} - source.state_dict().keys()
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(pixels), source((pixels - model.mean) / model.std))


def test_other_stem_and_classifier_stay_random(tmp_path: Path) -> None:
    source = pretrained("resnet18", **NARROW)
    model = create_model("r18_relu", num_classes=5, image_size=32, **NARROW)
    before = copy_of(model.backbone)
    remaining = load_initial_weights(model, save(source, tmp_path / "w.safetensors"))
    assert sorted(remaining) == ["conv1.weight", "fc.bias", "fc.weight"]
    state = source.state_dict()
    for name, tensor in tensors(model.backbone).items():
        assert torch.equal(tensor, before[name] if name in remaining else state[name]), name


@pytest.mark.parametrize("target", ["r18_sparta", "r18_relu"])
def test_weights_of_a_bundle(target: str, tmp_path: Path) -> None:
    source = create_model("r18_sparta", num_classes=5, image_size=32, **NARROW)
    with torch.no_grad():
        for tensor in tensors(source.backbone).values():
            tensor.add_(1)
    save_file(tensors(source), tmp_path / "weights.safetensors")
    model = create_model(target, num_classes=5, image_size=32, **NARROW)
    assert load_initial_weights(model, str(tmp_path / "weights.safetensors")) == []
    assert all(torch.equal(tensor, tensors(source)[name]) for name, tensor in tensors(model).items())


def test_other_kernel_size_is_refused(tmp_path: Path) -> None:
    source = create_model("r18_sparta", image_size=32, kernel_size=5, **NARROW)
    save_file(tensors(source), tmp_path / "w.safetensors")
    message = init_error(create_model("r18_sparta", image_size=32, **NARROW), str(tmp_path / "w.safetensors"))
    assert "act1.weight" in message


@pytest.mark.parametrize("other", ["resnet34", "wider", "without a tensor", "empty"])
def test_other_backbone_is_refused(other: str, tmp_path: Path) -> None:
    options = {"channels": (4, 8, 12, 20)} if other == "wider" else NARROW
    state = pretrained("resnet10t" if other == "resnet34" else "resnet18", **options).state_dict()
    if other == "without a tensor":
        del state["layer3.0.bn1.running_mean"]
    path = tmp_path / "w.safetensors"
    save_file({} if other == "empty" else state, path)
    message = init_error(create_model("r18_sparta", image_size=224, **NARROW), str(path))
    assert f"the weights in {path} do not fit r18_sparta" in message
    assert "Give weights of the same backbone" in message
    if other == "without a tensor":
        assert "1 tensors" in message
        assert "layer3.0.bn1.running_mean" in message


def test_unreadable_files(tmp_path: Path) -> None:
    model = create_model("r18_relu", image_size=8, **NARROW)
    whole = save(pretrained("resnet18", **NARROW), tmp_path / "whole")
    (tmp_path / "half").write_bytes(Path(whole).read_bytes()[:20_000])
    (tmp_path / "pickle").write_bytes(b"\x80\x04K\x01." + bytes(64))
    for path in (tmp_path / "missing", tmp_path, tmp_path / "half", tmp_path / "pickle"):
        message = init_error(model, str(path))
        assert f"{str(path)!r} cannot be read as a safetensors file" in message
        assert 'Give "random", "pretrained" or a .safetensors file' in message


# --- init = "pretrained", without network access ---


@pytest.mark.parametrize(
    "error",
    [OSError("[Errno -2] Name or service not known\nmore"), RuntimeError("no weights"), TimeoutError()],
)
def test_failed_download(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("r18_sparta", image_size=8, **NARROW)

    def fail(*_: object, **__: object) -> nn.Module:
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    message = init_error(model, "pretrained")
    assert "cannot download timm's pretrained weights of resnet18" in message
    assert (str(error).split("\n")[0] or "TimeoutError") in message
    assert "Connect to the model hub once, or give a .safetensors file" in message
    assert "more" not in message


@pytest.mark.parametrize("in_chans", [1, 3])
def test_pretrained_weights(in_chans: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("r18_sparta", num_classes=1000, image_size=224, in_chans=in_chans, **NARROW).eval()
    source = pretrained("resnet18", in_chans=in_chans, **NARROW)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def create(*args: Any, **options: Any) -> nn.Module:
        calls.append((args, options))
        return source

    monkeypatch.setattr(timm, "create_model", create)
    load_initial_weights(model, "pretrained")
    assert calls == [(("resnet18",), {"pretrained": True, "in_chans": in_chans})]
    pixels = torch.rand(1, in_chans, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(pixels), source((pixels - model.mean) / model.std))


def test_missing_stem_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At 224 pixels the stem has the shape of the file's, which must not lack it."""
    state = timm.create_model("resnet10t", num_classes=3).state_dict()
    whole, without_stem = tmp_path / "whole.safetensors", tmp_path / "without_stem.safetensors"
    save_file(state, whole)
    save_file({k: v for k, v in state.items() if k != "conv1.0.weight"}, without_stem)
    with pytest.raises(UnsupportedModel, match=r"conv1\.0\.weight"):
        load_initial_weights(create_model("resnet10t_sparta", 3, 224), str(without_stem))
    load_initial_weights(create_model("resnet10t_sparta", 3, 224), str(whole))
    assert not caplog.records
    load_initial_weights(create_model("resnet10t_sparta", 5, 224), str(whole))
    assert "fc.weight" in caplog.text
