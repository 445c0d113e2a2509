"""Builds a classifier by name: pixels in [0, 1] to logits, any timm CNN, any activation."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from statistics import fmean
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from robust_export.bundle import Bundle
from robust_export.errors import BundleError, InvalidValue, UnsupportedModel, reason, unknown
from robust_export.nn.replace import (
    ACTIVATIONS,
    LEARNT,
    NO_FEATURE_MAP,
    Share,
    convertible_backbones,
    replace_activations,
)
from robust_export.nn.sparta_file import (
    freeze_sparta,
    keep_bias_only,
    load_sparta,
    scramble_sparta,
)
from robust_export.nn.state_dict import load_tensors, tensors
from robust_export.nn.stem import SMALL_IMAGE, keep_resolution, names, timm_config
from robust_export.recipe.schema import Model, SpartaForm, SpartaOptions

log = logging.getLogger(__name__)

SHORT_NAMES = {f"r{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)}


class PixelClassifier(nn.Module):
    """Normalisation and a backbone: pixels [N, C, H, W] in [0, 1] to logits [N, K]."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, backbone: nn.Module, mean: list[float], std: list[float], *,
        num_classes: int, image_size: int, in_chans: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name = name
        self.num_classes = num_classes
        self.image_size = image_size
        self.in_chans = in_chans
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.backbone((pixels - self.mean) / self.std)
        return logits


def split_name(name: str) -> tuple[str, str]:
    """Return (timm name, activation) of a model's name: "r18_sparta" is ("resnet18", "sparta").

    Raises:
        UnknownName: naming the nearest model that there is.
    """
    backbone, _, activation = name.rpartition("_")
    backbone = SHORT_NAMES.get(backbone, backbone)
    if activation not in ACTIVATIONS or not timm.is_model(backbone):
        known = {*timm.list_models(), *SHORT_NAMES}
        endings = [activation] if activation in ACTIVATIONS else ["sparta", "relu"]
        candidates = [f"{stem}_{ending}" for stem in known for ending in endings]
        raise unknown(
            "model", name, candidates,
            "A model's name is <backbone>_<activation>, a timm name (or r18, r34, r50) and one of "
            f"{', '.join(ACTIVATIONS)}; `robust-export models` lists them.",
        )  # fmt: skip
    return backbone, activation


def model_names() -> list[str]:
    """Return every name that `create_model` takes, short forms included."""
    backbones = [*SHORT_NAMES, *convertible_backbones()]
    return [f"{backbone}_{activation}" for backbone in backbones for activation in ACTIVATIONS]


def create_model(
    name: str,
    num_classes: int = 10,
    image_size: int = 32,
    in_chans: int = 3,
    *,
    share: Share = "width",
    kernel_size: int = 3,
    form: SpartaForm = "relu",
    **timm_options: Any,
) -> PixelClassifier:
    """Build a network with random weights whose activations are those its name ends in.

    Images of up to 64 pixels get the small stem of CIFAR networks: the first convolution is 3x3
    with stride 1, and the stem's max-pool is dropped. Normalisation is the backbone's own.

    Args:
        name: `<backbone>_<activation>`, such as "r18_sparta" or "mobilenetv3_large_100_relu".
        num_classes: K of the logits [N, K].
        image_size: H = W of the pixels [N, in_chans, H, W] in [0, 1].
        share, kernel_size, form: of Sparta, see `replace_activations`.
        timm_options: keyword arguments of the timm model, such as `channels`.

    Raises:
        UnknownName: for a name that is no model.
        UnsupportedModel: for a backbone that cannot be built or has no activation on a plane.
    """
    timm_name, activation = split_name(name)
    if timm_name.partition(".")[0] not in convertible_backbones():
        raise UnsupportedModel(f"{name}: {timm_name} {NO_FEATURE_MAP}")
    backbone = _build_backbone(timm_name, num_classes, image_size, in_chans, timm_options)
    try:
        replace_activations(
            backbone, activation, share=share, kernel_size=kernel_size, form=form,
            image_size=image_size, in_chans=in_chans,
        )  # fmt: skip
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{name}: {error}") from error
    _check_runs(name, backbone, image_size, in_chans)
    mean, std = _normalisation(timm_name, in_chans)
    return PixelClassifier(
        name, backbone, mean, std,
        num_classes=num_classes, image_size=image_size, in_chans=in_chans,
    )  # fmt: skip


def build_model(spec: Model, options: SpartaOptions, num_classes: int, seed: int = 0) -> PixelClassifier:
    """Build the network of a recipe and start it from what the recipe says (`init`, `load`, `gate`).

    Args:
        seed: of the places that a gate's values take where `gate` is "random".
    """
    model = create_model(
        spec.name, num_classes, spec.image_size, spec.in_chans,
        share=options.share, kernel_size=options.kernel_size, form=options.form, **spec.options,
    )  # fmt: skip
    if spec.init != "random":
        load_initial_weights(model, spec.init)
    if options.load:
        load_sparta(model, sparta_file(options.load))
    if options.gate == "random":
        scramble_sparta(model, seed)
    if options.gate == "bias":
        keep_bias_only(model)
    if options.freeze:
        freeze_sparta(model)
    return model


def sparta_file(source: str) -> Path:
    """Return the file of a Sparta function: itself, or that of the bundle which `source` names.

    Raises:
        BundleError: if a bundle is missing, altered, or has no Sparta function.
    """
    path = Path(source)
    return path if path.suffix == ".safetensors" else Bundle.open(source).file("sparta.safetensors")


def load(bundle: str | Path | Bundle) -> PixelClassifier:
    """Return a bundle's trained network, in eval mode and float32.

    Raises:
        BundleError: if the bundle is missing, half-written, altered or does not fit its recipe.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    recipe = opened.recipe()
    model = create_model(
        recipe.model.name, len(opened.labels), recipe.model.image_size, recipe.model.in_chans,
        share=recipe.sparta.share, kernel_size=recipe.sparta.kernel_size, form=recipe.sparta.form,
        **recipe.model.options,
    )  # fmt: skip
    try:
        load_tensors(model, safetensors.torch.load_file(opened.file("weights.safetensors")))
    except (safetensors.SafetensorError, InvalidValue) as error:
        raise BundleError(f"{opened.path}: weights.safetensors does not fit: {error}") from error
    return model.eval()


def load_initial_weights(model: PixelClassifier, init: str) -> list[str]:
    """Start from timm's pretrained weights ("pretrained") or from a .safetensors file.

    A file may be a bundle's weights.safetensors or a timm checkpoint of the backbone. The stem of
    small images and a classifier of another number of classes cannot be taken over; they keep
    their random start, with a warning. Learnt activations that the weights do not know keep their start.

    Returns:
        The names of the tensors that were not taken over.

    Raises:
        UnsupportedModel: if the weights cannot be had or do not fit the backbone.
    """
    timm_name, _ = split_name(model.name)
    saved = _pretrained(timm_name, model.in_chans) if init == "pretrained" else _read_weights(init)
    own = {name.removeprefix("backbone."): tensor for name, tensor in model.state_dict().items()}
    saved = {name.removeprefix("backbone."): tensor for name, tensor in saved.items()}
    fits = {name for name in own if name in saved and own[name].shape == saved[name].shape}
    left = [name for name in tensors(model.backbone) if name not in fits]
    config = timm_config(timm_name)
    stem = tuple(f"{name}." for name in names(config.first_conv))
    classifier = tuple(f"{name}." for name in names(config.classifier))
    learnt_names = _learnt_names(model.backbone)
    wrong = [
        name
        for name in left
        if not name.startswith(classifier)  # other classes, or weights without a classifier
        and not (name.startswith(stem) and name in saved)  # a stem of another shape, but not of none
        and not (name in learnt_names and name not in saved)
    ]
    if wrong:
        raise UnsupportedModel(
            f"the weights in {init} do not fit {model.name}: {len(wrong)} tensors are missing or of "
            f"another shape, the first is {wrong[0]}. Give weights of the same backbone."
        )
    with torch.no_grad():
        for name in fits:
            own[name].copy_(saved[name])
    if fresh := [name for name in left if name not in learnt_names]:
        log.warning("%s does not fit %s in %s: random there", init, model.name, ", ".join(fresh))
    return left


def _build_backbone(
    timm_name: str, num_classes: int, image_size: int, in_chans: int, options: dict[str, Any]
) -> nn.Module:
    try:
        backbone: nn.Module = timm.create_model(
            timm_name, num_classes=num_classes, in_chans=in_chans, **options
        )
    except Exception as error:  # timm checks its arguments by asserts, or not at all
        raise UnsupportedModel(
            f"timm cannot build {timm_name} with {options}: {reason(error)}. Keys of [model] other than "
            "name, image_size, in_chans and init go to timm as keyword arguments."
        ) from error
    if image_size <= SMALL_IMAGE:
        keep_resolution(backbone, timm_name)
    return backbone


def _check_runs(name: str, backbone: nn.Module, image_size: int, in_chans: int) -> None:
    """Raise UnsupportedModel unless the network runs on such images (shapes only, on meta)."""
    try:
        with torch.no_grad():
            twin = copy.deepcopy(backbone).to("meta").eval()
            twin(torch.empty(2, in_chans, image_size, image_size, device="meta"))
    except Exception as error:  # networks fail in ways of their own
        raise UnsupportedModel(
            f"{name} does not run on images of {image_size} x {image_size} with {in_chans} channels: "
            f"{reason(error)}. Give a larger image_size, or another backbone."
        ) from error


def _learnt_names(module: nn.Module) -> set[str]:
    """Return the names of the parameters of learnt activations."""
    named = module.named_modules(remove_duplicate=False)
    return {
        f"{name}.{part}"
        for name, child in named
        if isinstance(child, LEARNT)
        for part, _ in child.named_parameters()
    }


def _normalisation(timm_name: str, in_chans: int) -> tuple[list[float], list[float]]:
    """Return the backbone's own mean and std, averaged where the images are not RGB."""
    config = timm_config(timm_name)
    mean, std = list(config.mean), list(config.std)
    if in_chans != len(mean):
        mean, std = [fmean(mean)] * in_chans, [fmean(std)] * in_chans
    return mean, std


def _pretrained(timm_name: str, in_chans: int) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = timm.create_model(
            timm_name, pretrained=True, in_chans=in_chans
        ).state_dict()
    except Exception as error:  # the hub's client and timm raise many kinds
        raise UnsupportedModel(
            f"timm's pretrained weights of {timm_name} cannot be had: "
            f"{reason(error)}\n"
            "Connect to the model hub once, or give a .safetensors file with --init FILE."
        ) from error
    return state


def _read_weights(path: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UnsupportedModel(
            f"initial weights {path!r} cannot be read as a safetensors file: {error}\n"
            'Give "random", "pretrained" or a .safetensors file.'
        ) from error
