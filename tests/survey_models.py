"""Check `convertible_backbones()` against all of timm's networks.

    python tests/survey_models.py [MODULE ...]

MODULE is a timm module such as `resnet` or `vgg`; the default is all of them, which takes about half an hour.
Nothing is downloaded: networks are built on torch's meta device, without weights. Run it for a new version of
timm, and correct `WITHOUT_FEATURE_MAPS` in nn/model_names.py by its output.

This is a script, not a test, because it depends on timm's version and takes too long.
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
    """Yield (network, disagreement with `convertible_backbones()` or "") for the modules' networks."""
    listed = set(convertible_backbones())
    for module in modules:
        for name in timm.list_models(module=module):
            reason = conversion_error(name)
            if (name in listed) == (not reason):
                yield name, ""
            else:
                yield name, f"listed, but {reason}" if reason else "not listed, but can be converted"


def conversion_error(name: str) -> str:
    """Return in one line why a network cannot be converted, "" if it can."""
    config = timm.get_pretrained_cfg(name)
    in_chans, _, size = config.input_size if config else (3, 128, 128)
    try:
        find_sites(build(name), size, in_chans)
    except UnsupportedModel as error:
        return str(error).splitlines()[0]
    return ""


def build(name: str) -> nn.Module:
    """Return a timm network on the meta device, or on the CPU if its constructor needs values."""
    network: nn.Module
    try:
        with torch.device("meta"):
            network = timm.create_model(name)
    except (NotImplementedError, RuntimeError):
        network = timm.create_model(name)
    return network


def main(modules: Sequence[str]) -> int:
    """Print disagreements and their number; return 1 if there are any."""
    known = timm.list_modules()
    for module in modules:
        if module not in known:
            raise SystemExit(str(unknown("timm module", module, known)))
    warnings.simplefilter("ignore")  # timm warns of deprecated names
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
