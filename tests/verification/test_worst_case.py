"""Worst-case search on classifiers whose worst case is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from robust_export.recipe.schema import Threat
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.verification.worst_case import (
    DifferenceRecorder,
    WorstCaseSearch,
    join,
    summarize,
    worst_case,
)


def f32(values: object) -> Pixels:
    return np.array(values, np.float32)


SHAPE = (1, 4, 4)
EPS = 0.1
LINF = Threat("Linf", EPS)


class Two:
    """Logits 10 (mean of the image - 1/2) and 0, plus an optional difference."""

    runtime, precision = "test", "fp32"

    def __init__(self, add: Callable[[Pixels], Logits] | None = None) -> None:
        self.add = add
        self.inputs: list[Pixels] = []

    def __call__(self, pixels: Pixels) -> Logits:
        self.inputs.append(pixels)
        logits = np.zeros((len(pixels), 2), np.float32)
        logits[:, 0] = 10 * (pixels.mean(axis=(1, 2, 3), dtype=np.float64) - 0.5)
        return logits + (self.add(pixels) if self.add else np.float32(0))


def search(artifact: Two, *, ascent: int = 0, n: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Search around images of mean 0.55 (class 0), from an adversarial image of mean 0.46 (class 1)."""
    clean = np.full((n, *SHAPE), 0.55, np.float32)
    adversarial = np.full((n, *SHAPE), 0.46, np.float32)
    found = WorstCaseSearch(
        Two(),
        artifact,
        clean,
        np.zeros(n, np.int64),
        [adversarial, adversarial],
        LINF,
        ascent=ascent,
        seed=seed,
    )
    return dict(found.run())


def shift(amount: float) -> Callable[[Pixels], Logits]:
    return lambda pixels: np.tile(f32([amount, 0]), (len(pixels), 1))


def test_equal_artifact() -> None:
    result = search(Two(), ascent=10)
    found = summarize(join([result]))
    assert (found.max_abs, found.flips, found.flip_margin) == (0, 0, 0)
    assert found.evaluations == len(result["max_abs"]) > 6 * 20


@pytest.mark.parametrize("amount", [1e-3, -1e-3, 0.3, -0.3])
def test_shifted_boundary(amount: float) -> None:
    """At the artifact's boundary the reference model's margin is |amount|, the largest of any flip."""
    result = search(Two(shift(amount)))
    found = summarize(join([result]))
    assert found.max_abs == pytest.approx(abs(amount), rel=1e-3)
    assert found.flips > 0
    assert found.flip_margin <= abs(amount) * (1 + 1e-3)
    assert found.flip_margin >= abs(amount) * (1 - 1e-2)


def test_search_finds_flips_that_random_inputs_miss() -> None:
    artifact = Two(shift(1e-3))
    noise = np.random.default_rng(0).random((200, *SHAPE), np.float32)
    recorder = DifferenceRecorder()
    recorder.observe(noise, Two()(noise), artifact(noise))
    random = summarize(join([recorder.arrays()]))
    result = search(artifact)
    assert random.evaluations == 200
    assert random.max_abs == pytest.approx(1e-3, rel=1e-3)
    assert random.flips < 3  # within 1e-3 of the boundary by chance
    assert summarize(join([result])).flips > 30


def test_bisection_reaches_float32_resolution() -> None:
    artifact = Two()
    search(artifact)
    means = np.concatenate([p.mean(axis=(1, 2, 3), dtype=np.float64) for p in artifact.inputs])
    assert np.abs(means - 0.5).min() < 1e-7


def trigger(pixels: Pixels) -> Logits:
    """A backdoor within the ball of the images: a bright first column flips the prediction."""
    fires = pixels[:, 0, :, 0].min(axis=1) > 0.64
    return np.where(fires[:, None], f32([-50, 0]), np.float32(0))


def test_ascent_finds_a_backdoor() -> None:
    result = search(Two(trigger), n=32)
    found = summarize(join([result]))
    assert found.max_abs == pytest.approx(50)
    assert found.flip_margin > 0.4
    rows, pixels = result["rows"], result["pixels"]
    assert 0 < len(rows) <= 32
    assert (Two(trigger)(pixels).argmax(1) == 1).all()
    assert np.abs(pixels - 0.55).max() <= EPS * (1 + 1e-5)


def test_ascent_raises_the_difference() -> None:
    """The difference grows in a direction that no start has."""
    toward = np.random.default_rng(3).choice([-1, 1], SHAPE).astype(np.float32)
    artifact = Two(lambda x: f32([1, 0]) * (x * toward).sum(axis=(1, 2, 3))[:, None])
    most = [summarize(join([search(artifact, ascent=steps)])).max_abs for steps in (0, 100)]
    best = abs(0.55 * toward.sum()) + EPS * toward.size  # in the corner of the ball
    assert most[0] < 0.9 * best
    assert 0.9 * best < most[1] <= best * (1 + 1e-5)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_all_inputs_lie_in_the_ball(norm: str) -> None:
    threat = Threat("Linf" if norm == "Linf" else "L2", EPS)
    random = np.random.default_rng(0)
    clean = random.random((5, *SHAPE), np.float32)
    step = random.standard_normal(clean.shape).astype(np.float32)
    size = np.abs(step).max() if norm == "Linf" else np.sqrt((step**2).sum(axis=(1, 2, 3), keepdims=True))
    start = np.clip(clean + EPS * step / size, 0, 1)
    artifact = Two()
    WorstCaseSearch(
        Two(), artifact, clean, np.zeros(5, np.int64), [start, start], threat, ascent=20, seed=1
    ).run()  # fmt: skip
    for pixels in artifact.inputs:
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        if len(pixels) == 5:
            delta = np.abs(pixels.astype(np.float64) - clean).reshape(5, -1)
            far = delta.max(1) if norm == "Linf" else np.sqrt((delta**2).sum(1))
            assert far.max() <= EPS * (1 + 1e-5)


def test_seed() -> None:
    one, same, other = (search(Two(trigger), ascent=5, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one["max_abs"], same["max_abs"])
    assert len(one["max_abs"]) != len(other["max_abs"]) or (one["max_abs"] != other["max_abs"]).any()


def test_empty_recorder() -> None:
    found = summarize(join([DifferenceRecorder().arrays()]))
    assert (found.max_abs, found.flips, found.flip_margin, found.evaluations) == (0, 0, 0, 0)


def test_at_risk_is_the_fraction_of_small_margins() -> None:
    recorder = DifferenceRecorder()
    recorder.observe(np.zeros((1, *SHAPE), np.float32), f32([[1, 0]]), f32([[1.5, 0]]))
    inputs = join([recorder.arrays()])
    clean = f32([[0.9, 0], [1.1, 0], [5, 0], [0, 6]])
    assert worst_case(inputs, inputs, clean).at_risk == 0.25
