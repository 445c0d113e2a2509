"""Probes timm's networks, and prints those on which `convertible_backbones()` is wrong.

    python tests/survey_models.py [MODULE ...]

MODULE is one of timm's modules, such as `resnet` or `vgg`; without any, all are probed, which takes
about half an hour. Nothing is downloaded: networks are built on torch's meta device, without
weights. Run it when timm has a new version, and mend `WITHOUT_FEATURE_MAPS` in activations.py by it.

It is a script, not a test: what timm offers is not this project's doing, and too much to run daily.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence

import timm
import torch
from torch import nn

from robust_export.errors import UnsupportedModel, unknown
from robust_export.nn.model_names import convertible_backbones
from robust_export.nn.sites import find_sites


def survey(modules: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield every network of the modules with what is wrong about it, "" if nothing is."""
    listed = set(convertible_backbones())
    for module in modules:
        for name in timm.list_models(module=module):
            reason = why_not(name)
            if (name in listed) == (not reason):
                yield name, ""
            else:
                yield name, f"listed, but {reason}" if reason else "not listed, but can be converted"


def why_not(name: str) -> str:
    """Return why a network cannot be converted, in a line; "" if it can."""
    config = timm.get_pretrained_cfg(name)
    in_chans, _, size = config.input_size if config else (3, 128, 128)
    try:
        find_sites(build(name), size, in_chans)
    except UnsupportedModel as error:
        return str(error).splitlines()[0]
    return ""


def build(name: str) -> nn.Module:
    """Return a timm network without weights, or with random ones if its constructor computes."""
    network: nn.Module
    try:
        with torch.device("meta"):
            network = timm.create_model(name)
    except (NotImplementedError, RuntimeError):
        network = timm.create_model(name)
    return network


def main(modules: Sequence[str]) -> int:
    """Print what is wrong, and a count; return 1 if anything is."""
    known = timm.list_modules()
    for module in modules:
        if module not in known:
            raise SystemExit(str(unknown("timm module", module, known)))
    warnings.simplefilter("ignore")  # timm's, about deprecated names
    count = wrong = 0
    for name, problem in survey(modules or known):
        count += 1
        if problem:
            wrong += 1
            print(f"{name}: {problem}", flush=True)
    print(f"{count} networks probed, convertible_backbones() is wrong on {wrong}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
