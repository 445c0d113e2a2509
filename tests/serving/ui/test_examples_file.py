"""examples.json says what the exported file does, and its attacks are attacks, in their balls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robust_export.attacks.pgd import pgd
from robust_export.bundle import Bundle
from robust_export.data.datasets import load_dataset
from robust_export.errors import BundleError, InvalidValue
from robust_export.recipe.schema import Threat
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.serving.ui import make_examples as attack
from robust_export.serving.ui.examples_file import held, quantise, read, restore
from robust_export.serving.ui.make_examples import Wanted, make_examples
from tests.serving.ui import examples

EPS = 0.1  # of the bundle


def test_the_exported_file_decides_as_the_file_says(shown: Path, found: dict[str, Any]) -> None:
    classifier = OnnxRuntimeClassifier(shown / "model.onnx")
    for i, image in enumerate(found["images"]):
        logits = classifier(examples.inputs(found, i))
        margins = examples.margins(logits, image["label"])
        np.testing.assert_allclose(margins, examples.said(found, i, "margin"), atol=1e-3)
        sure = np.abs(margins) > 1e-3
        np.testing.assert_array_equal(
            logits.argmax(1)[sure], np.array(examples.said(found, i, "decision"))[sure]
        )
        assert margins[0] > 0


def test_the_images_are_the_test_splits(found: dict[str, Any]) -> None:
    split = load_dataset("digits", "test", 8, 3)
    assert len(found["images"]) == 6
    for i, image in enumerate(found["images"]):
        pixels, label = split[image["index"]]
        np.testing.assert_array_equal(examples.inputs(found, i)[0], pixels.numpy())
        assert image["label"] == label
    assert len({image["label"] for image in found["images"]}) >= 3


def test_the_attacks_are_in_their_balls_and_grow_stronger(found: dict[str, Any]) -> None:
    np.testing.assert_allclose(found["radii"], EPS * np.arange(1, 9) / 4)
    fell = 0
    for i in range(6):
        planes = examples.inputs(found, i).astype(np.float64)
        reached = np.abs(planes[1:] - planes[0]).reshape(8, -1).max(axis=1)
        assert (reached <= np.array(found["radii"]) + 1e-7).all()
        assert planes.min() >= 0
        assert planes.max() <= 1
        margins = examples.said(found, i, "margin")
        assert margins == sorted(margins, reverse=True)
        assert margins[1] < margins[0]
        fell += margins[-1] < 0
    assert fell >= 3  # at twice the eps of a network that was trained for 3 epochs
    assert held(found) == [
        sum(examples.said(found, i, "margin")[k] > 0 for i in range(6)) for k in range(1, 9)
    ]


def test_they_are_stronger_than_noise_of_the_same_size(shown: Path, found: dict[str, Any]) -> None:
    classifier = OnnxRuntimeClassifier(shown / "model.onnx")
    random = np.random.default_rng(0)
    for i, image in enumerate(found["images"]):
        noise = random.choice([-EPS, EPS], (50, *found["plane"]))
        noisy = np.clip(examples.clean(found, i) / 255 + noise, 0, 1).astype(np.float32)
        assert (
            examples.said(found, i, "margin")[4] < examples.margins(classifier(noisy), image["label"]).min()
        )


def test_a_weaker_attack_of_a_larger_ball_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    def back(_: Any, pixels: Any, __: Any, threat: Threat, **given: Any) -> Any:
        return real(_, pixels, __, threat, **given) if threat.eps < 0.04 else pixels

    real = pgd
    monkeypatch.setattr(attack, "pgd", back)
    made = make_examples(bundle, Wanted(images=3, steps=3), device="cpu")
    for image in made["images"]:
        assert image["attacks"][0]["margin"] < image["clean"]["margin"]
        assert image["attacks"][1:] == [image["attacks"][0]] * 7


def test_under_l2(bundle: Bundle) -> None:
    made = make_examples(bundle, Wanted(images=2, steps=5), Threat("L2", 0.5), device="cpu")
    for i in range(2):
        planes = examples.inputs(made, i).astype(np.float64)
        lengths = np.linalg.norm((planes[1:] - planes[0]).reshape(8, -1), axis=1)
        assert (lengths <= np.array(made["radii"]) + 1e-6).all()
        assert lengths[0] > 0.05
    assert made["threat"] == {"norm": "L2", "eps": 0.5}


def test_the_same_wishes_give_the_same_file(bundle: Bundle) -> None:
    contents = []
    for seed in (1, 1, 2):
        make_examples(bundle, Wanted(images=2, steps=2, seed=seed), device="cpu")
        contents.append(bundle.file("examples.json").read_bytes())
    assert contents[0] == contents[1] != contents[2]
    assert Bundle.open(bundle.path).files("examples") == ["examples.json"]


def test_large_images_are_fewer(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack, "ROOM", 3 * 9 * 192 + 1)
    assert len(make_examples(bundle, Wanted(steps=1), device="cpu")["images"]) == 3


def test_without_an_eps_there_is_nothing_to_attack_with(bundle: Bundle) -> None:
    with pytest.raises(InvalidValue, match="--eps"):
        make_examples(bundle, threat=Threat("Linf", 0.0))


def test_rounding_leads_no_farther_away() -> None:
    random = np.random.default_rng(0)
    clean = random.integers(0, 256, (40, 3, 5, 5), np.uint8)
    moved = (clean / 255 + random.uniform(-0.03, 0.03, clean.shape)).clip(0, 1).astype(np.float32)
    clean[0] = moved[0] = 0
    delta, unit = quantise(clean, moved)
    back = restore(clean, delta, unit)
    change, before = np.abs(back - clean / 255.0), np.abs(moved - clean / 255.0)
    assert (change <= before + 1e-7).all()
    assert (before - change <= unit.reshape(-1, 1, 1, 1) + 1e-7).all()
    assert np.abs(delta[1:]).reshape(39, -1).max(axis=1).min() == 127
    assert not delta[0].any()


def test_a_bundle_without_it_has_none(trained: Path) -> None:
    assert read(Bundle.open(trained), [3, 8, 8]) is None


@pytest.mark.parametrize(
    ("key", "value"), [("weights_sha256", "0" * 64), ("labels", ["a"]), ("plane", [3, 9, 9]), ("schema", 2)]
)
def test_a_file_of_another_network_is_refused(
    shown: Path, bundle: Bundle, key: str, value: Any, found: dict[str, Any]
) -> None:
    bundle.write({"examples.json": json.dumps({**found, key: value})}, "examples")
    with pytest.raises(BundleError, match="robust-export page --model"):
        read(bundle, [3, 8, 8])
    bundle.write({"examples.json": "no JSON"}, "examples")
    with pytest.raises(BundleError, match="cannot be read"):
        read(bundle, [3, 8, 8])
