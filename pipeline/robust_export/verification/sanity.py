"""Checks against fooling ourselves: each is a row with its evidence.

What breaks an artifact's verdict is "fail"; what makes a figure mean less than it seems to is "warn".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from robust_export.runtimes.classifier import Classifier, Logits, Pixels
from robust_export.verification.criteria import Criteria
from robust_export.verification.parity import HUGE, gaps
from robust_export.verification.results import SanityCheck

FEW = 16  # images of the checks that run an artifact image by image
BLACK_BOX = 0.01  # share of the images that a black box may break alone before it is remarkable
Normalisation = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]  # mean, deviation: [C, 1, 1]

CLOSER = 0.1  # a remedy explains a gap if it leaves at most so much of it


def masking(
    accuracy: Mapping[str, float], one_step: float, many_steps: float, everything: float, flags: Sequence[str]
) -> list[SanityCheck]:
    """Return the checks of the source for masked gradients (Athalye et al., arXiv 1802.00420, section 3).

    Args:
        accuracy: robust accuracy after each attack, cumulative, "square" the black box among them.
        one_step, many_steps: robust accuracy under one step of size eps, and under PGD.
        everything: robust accuracy where the ball holds every image there is.
        flags: AutoAttack's own warnings.
    """
    return [
        _black_box("AutoAttack", accuracy),
        _row(
            "one step is no better than many", one_step >= many_steps - 1e-9, "warn",
            f"accuracy {one_step:.1%} under one step of size eps, {many_steps:.1%} under PGD",
        ),
        _row(
            "accuracy falls to zero as eps grows", everything <= BLACK_BOX, "warn",
            f"accuracy {everything:.1%} under PGD where the ball holds every image",
        ),
        _row(
            "AutoAttack warns of nothing", not flags, "warn",
            "; ".join(flags) or "no flag was raised",
        ),
    ]  # fmt: skip


def black_box(accuracy: Mapping[str, float]) -> SanityCheck:
    """Return whether Square broke what transfer and BPDA could not break on an artifact."""
    return _black_box("transfer and BPDA", accuracy)


def finite(logits: Sequence[Logits]) -> SanityCheck:
    """Return whether every logit that the artifact ever gave is finite."""
    bad = sum(int((~np.isfinite(part)).sum()) for part in logits)
    total = sum(part.size for part in logits)
    return _row("logits are finite", bad == 0, "fail", f"{bad:,} of {total:,} logits are NaN or infinite")


def repeatable(artifact: Classifier, images: Pixels, gates: Criteria) -> list[SanityCheck]:
    """Return whether an image's logits depend on anything but the image.

    Args:
        images: [N, C, H, W], N at least 2.
    """
    first = artifact(images)
    artifact(1 - images)
    again = artifact(images)
    backwards = artifact(np.ascontiguousarray(images[::-1]))[::-1]
    few = np.unique(np.linspace(0, len(images) - 1, FEW).astype(int))  # from everywhere in the batch
    single = np.concatenate([artifact(images[i : i + 1]) for i in few])
    return [
        _same("the same input twice", first, again, gates),
        _same("position in the batch", first, backwards, gates),
        _same(f"batches of 1 and of {len(images)}", first[few], single, gates),
    ]


def extremes(source: Classifier, artifact: Classifier, images: Pixels, gates: Criteria) -> SanityCheck:
    """Return whether source and artifact agree on pixels of exactly 0 and exactly 1."""
    ends = [np.zeros_like(images[:1]), np.ones_like(images[:1]), np.round(images)]
    inputs = np.concatenate(ends)
    return _same("inputs of exactly 0 and 1", source(inputs), artifact(inputs), gates)


def labels_in_order(source: Logits, artifact: Logits, names: Sequence[str]) -> SanityCheck:
    """Return whether the artifact's logits stand in the source's order, by which they agree best.

    The best order is the assignment of outputs to outputs with the smallest squared difference of logits,
    solved exactly (Kuhn, 1955).

    Args:
        source, artifact: [N, K], on clean images.
    """
    name = "labels in order"
    a, b = source.astype(np.float64), np.nan_to_num(artifact.astype(np.float64))
    cost = (a**2).sum(0)[:, None] + (b**2).sum(0)[None, :] - 2 * a.T @ b
    rows, columns = linear_sum_assignment(cost)
    straight = (a.argmax(1) == b.argmax(1)).mean()
    ordered = (a.argmax(1) == b[:, columns].argmax(1)).mean()
    moved = [f"{names[i]} at {names[j]}'s place" for i, j in zip(rows, columns, strict=True) if i != j]
    if moved and ordered >= (1 + straight) / 2:  # it explains half of the disagreement, or more
        evidence = (
            f"decisions agree on {straight:.1%}, on {ordered:.1%} in another order: {', '.join(moved[:5])}"
        )
        return SanityCheck(name, "fail", evidence + (", ..." if len(moved) > 5 else ""))
    return SanityCheck(name, "ok", f"decisions agree on {straight:.1%}; no other order explains the rest")


def preprocessing(
    source: Classifier,
    artifact: Classifier,
    images: Pixels,
    gates: Criteria,
    normalisation: Normalisation | None,
) -> SanityCheck:
    """Return whether the artifact sees the images as the source does, or as the source would see others.

    If the gap is too large, the source is asked about the images as usual mistakes would change them; the one
    that explains the gap is named.

    Args:
        normalisation: the source's own mean and deviation.
    """
    name = "preprocessing"
    theirs = artifact(images)
    gap = float(gaps(source(images), theirs).max())
    if gap <= gates.max_gap:
        return SanityCheck(name, "ok", f"source and artifact differ by {gap:.2g} on images as they are")
    for mistake, change in _mistakes(images.shape[1], normalisation).items():
        explained = float(gaps(source(change(images)), theirs).max())
        if explained <= max(CLOSER * gap, gates.max_gap):
            return SanityCheck(
                name, "fail",
                f"the gap is {gap:.2g}, but {explained:.2g} when the source sees {mistake}",
            )  # fmt: skip
    return SanityCheck(name, "ok", f"a gap of {gap:.2g} is explained by no usual mistake of preprocessing")


def _mistakes(channels: int, normalisation: Normalisation | None) -> dict[str, Callable[[Pixels], Pixels]]:
    found: dict[str, Callable[[Pixels], Pixels]] = {
        "pixels divided by 255": lambda x: x / np.float32(255),
        "pixels times 255": lambda x: x * np.float32(255),
        "pixels of [-1, 1]": lambda x: 2 * x - 1,
        "inverted pixels": lambda x: 1 - x,
        "images upside down": lambda x: np.ascontiguousarray(x[:, :, ::-1]),
        "mirrored images": lambda x: np.ascontiguousarray(x[:, :, :, ::-1]),
        "rows and columns swapped": lambda x: np.ascontiguousarray(x.swapaxes(2, 3)),
    }
    if channels == 3:
        found["channels in the order BGR"] = lambda x: np.ascontiguousarray(x[:, ::-1])
    if normalisation is not None:
        mean, std = normalisation
        found["pixels that were normalised already"] = lambda x: (x - mean) / std
        found["pixels without normalisation"] = lambda x: x * std + mean
        found["pixels without the mean subtracted"] = lambda x: x + mean
        found["pixels not divided by the deviation"] = lambda x: (x - mean) * std + mean
    return found


def _black_box(others: str, accuracy: Mapping[str, float]) -> SanityCheck:
    name = "the black box is no better than the white box"
    before = [value for attack, value in accuracy.items() if attack != "square"]
    if "square" not in accuracy or not before:
        return SanityCheck(name, "ok", "not compared: Square or the attacks with gradients did not run")
    alone = min(before) - accuracy["square"]
    return _row(
        name,
        alone <= BLACK_BOX,
        "warn",
        f"Square broke {alone:.1%} of all images, which {others} could not break",
    )


def _same(what: str, one: Logits, other: Logits, gates: Criteria) -> SanityCheck:
    gap = float(gaps(np.nan_to_num(one), np.nan_to_num(other)).max(initial=0))  # `finite` sees to the rest
    changed = int((one.argmax(1) != other.argmax(1)).sum())
    shown = "infinity" if gap >= HUGE else f"{gap:.2g}"
    holds = gap <= gates.max_gap
    return _row(
        what, holds, "fail", f"logits differ by up to {shown}, {changed} of {len(one)} decisions change"
    )


def _row(name: str, holds: bool, otherwise: str, evidence: str) -> SanityCheck:
    return SanityCheck(name, "ok" if holds else otherwise, evidence)  # type: ignore[arg-type]
