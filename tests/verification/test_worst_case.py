"""The search for the worst case, on classifiers whose worst case is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from robust_export.recipe.schema import Threat
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.verification.worst_case import Search, Watch, points, summary, worst_case


def f32(values: object) -> Pixels:
    return np.array(values, np.float32)


PLANE = (1, 4, 4)
EPS = 0.1
LINF = Threat("Linf", EPS)


class Two:
    """Two classes: the mean of the image minus 1/2, times 10, and zero; plus what an artifact adds."""

    runtime, precision = "test", "fp32"

    def __init__(self, add: Callable[[Pixels], Logits] | None = None) -> None:
        self.add = add
        self.asked: list[Pixels] = []

    def __call__(self, pixels: Pixels) -> Logits:
        self.asked.append(pixels)
        logits = np.zeros((len(pixels), 2), np.float32)
        logits[:, 0] = 10 * (pixels.mean(axis=(1, 2, 3), dtype=np.float64) - 0.5)
        return logits + (self.add(pixels) if self.add else np.float32(0))


def search(
    artifact: Two, *, ascent: int = 0, n: int = 6, seed: int = 0
) -> tuple[Search, dict[str, np.ndarray]]:
    """Search around images of mean 0.55 (decided 0), from an adversarial image of mean 0.45 (decided 1)."""
    clean = np.full((n, *PLANE), 0.55, np.float32)
    adversarial = np.full((n, *PLANE), 0.46, np.float32)
    found = Search(
        Two(),
        artifact,
        clean,
        np.zeros(n, np.int64),
        [adversarial, adversarial],
        LINF,
        ascent=ascent,
        seed=seed,
    )
    return found, dict(found.run())


def shift(amount: float) -> Callable[[Pixels], Logits]:
    return lambda pixels: np.tile(f32([amount, 0]), (len(pixels), 1))


def test_an_equal_artifact_has_no_gap_and_no_flip() -> None:
    _, result = search(Two(), ascent=10)
    found = summary(points([result]))
    assert (found.max_abs, found.flips, found.flip_margin) == (0, 0, 0)
    assert found.evaluations == len(result["gap"]) > 6 * 20


@pytest.mark.parametrize("amount", [1e-3, -1e-3, 0.3, -0.3])
def test_a_shifted_boundary_is_found_with_the_margin_that_it_has(amount: float) -> None:
    """The artifact's boundary lies where the source is sure by |amount|: no flip has a larger margin."""
    _, result = search(Two(shift(amount)))
    found = summary(points([result]))
    assert found.max_abs == pytest.approx(abs(amount), rel=1e-3)
    assert found.flips > 0
    assert found.flip_margin <= abs(amount) * (1 + 1e-3)
    assert found.flip_margin >= abs(amount) * (1 - 1e-2)


def test_random_inputs_hide_what_the_search_finds() -> None:
    artifact = Two(shift(1e-3))
    noise = np.random.default_rng(0).random((200, *PLANE), np.float32)
    watch = Watch()
    watch.observe(noise, Two()(noise), artifact(noise))
    chance = summary(points([watch.arrays()]))
    _, result = search(artifact)
    assert chance.evaluations == 200
    assert chance.max_abs == pytest.approx(1e-3, rel=1e-3)
    assert chance.flips < 3  # within 1e-3 of the boundary by chance
    assert summary(points([result])).flips > 30


def test_bisection_goes_down_to_the_last_float32_steps() -> None:
    artifact = Two()
    search(artifact)
    means = np.concatenate([p.mean(axis=(1, 2, 3), dtype=np.float64) for p in artifact.asked])
    assert np.abs(means - 0.5).min() < 1e-7


def trigger(pixels: Pixels) -> Logits:
    """A backdoor within the ball of these images: a bright first column turns the decision."""
    fires = pixels[:, 0, :, 0].min(axis=1) > 0.64
    return np.where(fires[:, None], f32([-50, 0]), np.float32(0))


def test_the_ascent_meets_a_backdoor_and_returns_it_as_an_example() -> None:
    _, result = search(Two(trigger), n=32)
    found = summary(points([result]))
    assert found.max_abs == pytest.approx(50)
    assert found.flip_margin > 0.4
    rows, pixels = result["rows"], result["pixels"]
    assert 0 < len(rows) < 32 or len(rows) == 32
    assert (Two(trigger)(pixels).argmax(1) == 1).all()
    assert np.abs(pixels - 0.55).max() <= EPS * (1 + 1e-5)


def test_the_ascent_raises_the_gap() -> None:
    """The gap grows along a direction that no start points in."""
    toward = np.random.default_rng(3).choice([-1, 1], PLANE).astype(np.float32)
    artifact = Two(lambda x: f32([1, 0]) * (x * toward).sum(axis=(1, 2, 3))[:, None])
    most = [summary(points([search(artifact, ascent=steps)[1]])).max_abs for steps in (0, 100)]
    best = abs(0.55 * toward.sum()) + EPS * toward.size  # in the corner of the ball
    assert most[0] < 0.9 * best
    assert 0.9 * best < most[1] <= best * (1 + 1e-5)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_everything_that_is_asked_lies_in_the_ball(norm: str) -> None:
    threat = Threat("Linf" if norm == "Linf" else "L2", EPS)
    random = np.random.default_rng(0)
    clean = random.random((5, *PLANE), np.float32)
    step = random.standard_normal(clean.shape).astype(np.float32)
    size = np.abs(step).max() if norm == "Linf" else np.sqrt((step**2).sum(axis=(1, 2, 3), keepdims=True))
    start = np.clip(clean + EPS * step / size, 0, 1)
    artifact = Two()
    Search(
        Two(), artifact, clean, np.zeros(5, np.int64), [start, start], threat, ascent=20, seed=1
    ).run()  # fmt: skip
    for pixels in artifact.asked:
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        if len(pixels) == 5:
            delta = np.abs(pixels.astype(np.float64) - clean).reshape(5, -1)
            far = delta.max(1) if norm == "Linf" else np.sqrt((delta**2).sum(1))
            assert far.max() <= EPS * (1 + 1e-5)


def test_the_seed_decides() -> None:
    one, same, other = (search(Two(trigger), ascent=5, seed=s)[1] for s in (1, 1, 2))
    np.testing.assert_array_equal(one["gap"], same["gap"])
    assert len(one["gap"]) != len(other["gap"]) or (one["gap"] != other["gap"]).any()


def test_a_watch_that_saw_nothing() -> None:
    found = summary(points([Watch().arrays()]))
    assert (found.max_abs, found.flips, found.flip_margin, found.evaluations) == (0, 0, 0, 0)


def test_the_decisions_at_risk_are_those_with_a_margin_below_twice_the_gap() -> None:
    watch = Watch()
    watch.observe(np.zeros((1, *PLANE), np.float32), f32([[1, 0]]), f32([[1.5, 0]]))
    seen = points([watch.arrays()])
    clean = f32([[0.9, 0], [1.1, 0], [5, 0], [0, 6]])
    assert worst_case(seen, seen, clean).at_risk == 0.25
