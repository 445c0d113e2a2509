"""Sanity checks of an artifact: finite and repeatable logits, preprocessing, order of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from robust_export.runtimes.classifier import Classifier, Logits, Pixels
from robust_export.verification.criteria import Criteria
from robust_export.verification.parity import HUGE, max_abs_differences
from robust_export.verification.results import SanityCheck

Normalisation = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]  # mean, deviation: [C, 1, 1]

SINGLE_IMAGES = 16  # number of images that are also run one by one
EXPLAINED = 0.1  # a preprocessing error explains a difference if at most this fraction of it remains


def check_finite(logits: Sequence[Logits]) -> SanityCheck:
    """Check that all logits that the artifact returned are finite."""
    bad = sum(int((~np.isfinite(part)).sum()) for part in logits)
    total = sum(part.size for part in logits)
    return _check("logits are finite", bad == 0, f"{bad:,} of {total:,} logits are NaN or infinite")


def check_repeatable(artifact: Classifier, images: Pixels, criteria: Criteria) -> list[SanityCheck]:
    """Check that the logits of an image depend on nothing but the image.

    Args:
        images: [N, C, H, W], N at least 2.
    """
    first = artifact(images)
    artifact(1 - images)
    again = artifact(images)
    reversed_batch = artifact(np.ascontiguousarray(images[::-1]))[::-1]
    sample = np.unique(np.linspace(0, len(images) - 1, SINGLE_IMAGES).astype(int))
    single = np.concatenate([artifact(images[i : i + 1]) for i in sample])
    return [
        _check_equal("the same input twice", first, again, criteria),
        _check_equal("position in the batch", first, reversed_batch, criteria),
        _check_equal(f"batches of 1 and of {len(images)}", first[sample], single, criteria),
    ]


def check_extreme_pixels(
    reference: Classifier, artifact: Classifier, images: Pixels, criteria: Criteria
) -> SanityCheck:
    """Check that reference model and artifact agree on pixels of exactly 0 and exactly 1."""
    black_white_rounded = [np.zeros_like(images[:1]), np.ones_like(images[:1]), np.round(images)]
    inputs = np.concatenate(black_white_rounded)
    return _check_equal("inputs of exactly 0 and 1", reference(inputs), artifact(inputs), criteria)


def check_label_order(reference: Logits, artifact: Logits, names: Sequence[str]) -> SanityCheck:
    """Check that the artifact's logits are in the order of the reference model's.

    The best order is the assignment of outputs to outputs with the smallest squared difference of logits,
    solved exactly (Kuhn, 1955).

    Args:
        reference, artifact: [N, K], on clean images.
        names: of the K classes.
    """
    check = "labels in order"
    a, b = reference.astype(np.float64), np.nan_to_num(artifact.astype(np.float64))
    cost = (a**2).sum(0)[:, None] + (b**2).sum(0)[None, :] - 2 * a.T @ b
    rows, columns = linear_sum_assignment(cost)
    as_is = (a.argmax(1) == b.argmax(1)).mean()
    reordered = (a.argmax(1) == b[:, columns].argmax(1)).mean()
    moved = [
        f"output {names[j]} holds class {names[i]}" for i, j in zip(rows, columns, strict=True) if i != j
    ]
    if moved and reordered >= (1 + as_is) / 2:  # the new order explains half of the disagreement or more
        order = ", ".join(moved[:5]) + (", ..." if len(moved) > 5 else "")
        return SanityCheck(
            check, "fail",
            f"predictions agree on {as_is:.1%}, and on {reordered:.1%} in another order: {order}",
        )  # fmt: skip
    return SanityCheck(check, "ok", f"predictions agree on {as_is:.1%}; no other order explains the rest")


def check_preprocessing(
    reference: Classifier, artifact: Classifier, images: Pixels, criteria: Criteria,
    normalisation: Normalisation | None,
) -> SanityCheck:  # fmt: skip
    """Check for a preprocessing error if the logits differ by more than is allowed.

    Runs the reference model on images as common errors would change them, and names the error that explains
    the difference.

    Args:
        normalisation: mean and deviation of the reference model.
    """
    name = "preprocessing"
    logits = artifact(images)
    difference = float(max_abs_differences(reference(images), logits).max())
    if difference <= criteria.max_abs:
        return SanityCheck(name, "ok", f"logits differ by up to {difference:.2g} on unchanged images")
    for error, change in _preprocessing_errors(images.shape[1], normalisation).items():
        remaining = float(max_abs_differences(reference(change(images)), logits).max())
        if remaining <= max(EXPLAINED * difference, criteria.max_abs):
            return SanityCheck(
                name, "fail",
                f"logits differ by up to {difference:.2g}, but by {remaining:.2g} if the reference model "
                f"gets {error}",
            )  # fmt: skip
    return SanityCheck(
        name, "ok", f"logits differ by up to {difference:.2g}, which no common preprocessing error explains"
    )


def _preprocessing_errors(
    channels: int, normalisation: Normalisation | None
) -> dict[str, Callable[[Pixels], Pixels]]:
    errors: dict[str, Callable[[Pixels], Pixels]] = {
        "pixels divided by 255": lambda x: x / np.float32(255),
        "pixels times 255": lambda x: x * np.float32(255),
        "pixels of [-1, 1]": lambda x: 2 * x - 1,
        "inverted pixels": lambda x: 1 - x,
        "images upside down": lambda x: np.ascontiguousarray(x[:, :, ::-1]),
        "mirrored images": lambda x: np.ascontiguousarray(x[:, :, :, ::-1]),
        "rows and columns swapped": lambda x: np.ascontiguousarray(x.swapaxes(2, 3)),
    }
    if channels == 3:
        errors["channels in the order BGR"] = lambda x: np.ascontiguousarray(x[:, ::-1])
    if normalisation is not None:
        mean, std = normalisation
        errors["pixels that were normalised already"] = lambda x: (x - mean) / std
        errors["pixels without normalisation"] = lambda x: x * std + mean
        errors["pixels without the mean subtracted"] = lambda x: x + mean
        errors["pixels not divided by the deviation"] = lambda x: (x - mean) * std + mean
    return errors


def _check_equal(name: str, one: Logits, other: Logits, criteria: Criteria) -> SanityCheck:
    """Check that logits differ by no more than is allowed; NaN is left to `check_finite`."""
    difference = float(max_abs_differences(np.nan_to_num(one), np.nan_to_num(other)).max(initial=0))
    changed = int((one.argmax(1) != other.argmax(1)).sum())
    largest = "infinity" if difference >= HUGE else f"{difference:.2g}"
    return _check(
        name, difference <= criteria.max_abs,
        f"logits differ by up to {largest}, {changed} of {len(one)} predictions change",
    )  # fmt: skip


def _check(name: str, holds: bool, evidence: str) -> SanityCheck:
    return SanityCheck(name, "ok" if holds else "fail", evidence)
