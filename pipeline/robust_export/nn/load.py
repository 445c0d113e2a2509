"""Load the trained network of a bundle."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch

from robust_export.bundle import Bundle
from robust_export.errors import BundleError, InvalidValue
from robust_export.nn.models import create_model
from robust_export.nn.pixel_classifier import PixelClassifier
from robust_export.nn.state_dict import load_tensors

WEIGHTS = "weights.safetensors"


def load(bundle: str | Path | Bundle) -> PixelClassifier:
    """Return a bundle's trained network, in eval mode and float32.

    Args:
        bundle: an opened bundle, its path, or its name under exported/.

    Raises:
        BundleError: if the bundle is missing, unfinished or altered, or its weights do not fit its recipe.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    recipe = opened.recipe()
    model = create_model(
        recipe.model.name, len(opened.labels), recipe.model.image_size, recipe.model.in_chans,
        share=recipe.sparta.share, kernel_size=recipe.sparta.kernel_size, form=recipe.sparta.form,
        **recipe.model.options,
    )  # fmt: skip
    try:
        load_tensors(model, safetensors.torch.load_file(opened.file(WEIGHTS)))
    except (safetensors.SafetensorError, InvalidValue) as error:
        raise BundleError(f"{opened.path}: {WEIGHTS} does not fit the recipe's network: {error}") from error
    return model.eval()
