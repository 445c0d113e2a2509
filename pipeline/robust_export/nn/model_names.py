"""Model names: which there are, and which backbone and activation a name stands for."""

from __future__ import annotations

from fnmatch import fnmatch

import timm

from robust_export.errors import unknown
from robust_export.nn.activations import ACTIVATIONS

SHORT_NAMES = {f"r{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)}

WITHOUT_FEATURE_MAPS = frozenset(
    {
        "beit", "cait", "coat", "convit", "crossvit", "davit", "deepseek_vit", "deit", "eva",
        "gemma4_vit", "hiera", "mlp_mixer", "mvitv2", "naflexvit", "nest", "pit", "qwen3_vit",
        "swin_transformer", "swin_transformer_v2_cr", "tnt", "twins", "vision_transformer",
        "vision_transformer_relpos", "vision_transformer_sam",
    }
)  # fmt: skip
"""timm modules whose networks apply no activation to a feature map; tests/survey_models.py lists them."""

WITHOUT_FEATURE_MAPS_PATTERNS = (
    "ese_vovnet39b_evos",
    "pvt_v2_b[0-5]",
    "regnetz_*_evos",
    "resnetv2_50d_evos",
    "resnetv2_50d_frn",
    "test_efficientnet_evos",
)
"""Further networks, in other timm modules, whose activations are part of a normalisation layer."""


def split_name(name: str) -> tuple[str, str]:
    """Return (timm name, activation) of a model name: "r18_sparta" is ("resnet18", "sparta").

    Raises:
        UnknownName: for an unknown name; the message suggests the nearest names.
    """
    backbone, _, activation = name.rpartition("_")
    backbone = SHORT_NAMES.get(backbone, backbone)
    if activation not in ACTIVATIONS or not timm.is_model(backbone):
        backbones = {*timm.list_models(), *SHORT_NAMES}
        endings = [activation] if activation in ACTIVATIONS else ["sparta", "relu"]
        candidates = [f"{known}_{ending}" for known in backbones for ending in endings]
        raise unknown(
            "model", name, candidates,
            "A model name is <backbone>_<activation>: a timm name (or r18, r34, r50) and one of "
            f"{', '.join(ACTIVATIONS)}; `robust-export models` lists them.",
        )  # fmt: skip
    return backbone, activation


def convertible_backbones() -> list[str]:
    """Return the names of timm's networks that apply activations to feature maps."""
    modules = sorted(set(timm.list_modules()) - WITHOUT_FEATURE_MAPS)
    names = {name for module in modules for name in timm.list_models(module=module)}
    excluded = WITHOUT_FEATURE_MAPS_PATTERNS
    return sorted(name for name in names if not any(fnmatch(name, pattern) for pattern in excluded))


def model_names() -> list[str]:
    """Return every name that `create_model` takes, short names included."""
    backbones = [*SHORT_NAMES, *convertible_backbones()]
    return [f"{backbone}_{activation}" for backbone in backbones for activation in ACTIVATIONS]
