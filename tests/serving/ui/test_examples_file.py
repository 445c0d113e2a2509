"""examples.json: decisions equal those of the exported file; attacks are strong and within the radii."""

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
from robust_export.serving.ui import make_examples as module
from robust_export.serving.ui.examples_file import dequantize, quantize, read_examples, robust_counts
from robust_export.serving.ui.make_examples import AttackOptions, make_examples
from tests.serving.ui import examples

EPS = 0.1  # of the bundle


def test_decisions_are_those_of_the_exported_file(with_examples: Path, content: dict[str, Any]) -> None:
    classifier = OnnxRuntimeClassifier(with_examples / "model.onnx")
    for i, image in enumerate(content["images"]):
        logits = classifier(examples.inputs(content, i))
        margins = examples.margins(logits, image["label"])
        np.testing.assert_allclose(margins, examples.values(content, i, "margin"), atol=1e-3)
        sure = np.abs(margins) > 1e-3
        np.testing.assert_array_equal(
            logits.argmax(1)[sure], np.array(examples.values(content, i, "decision"))[sure]
        )
        assert margins[0] > 0


def test_images_are_from_the_test_split(content: dict[str, Any]) -> None:
    split = load_dataset("digits", "test", 8, 3)
    assert len(content["images"]) == 6
    for i, image in enumerate(content["images"]):
        pixels, label = split[image["index"]]
        np.testing.assert_array_equal(examples.inputs(content, i)[0], pixels.numpy())
        assert image["label"] == label
    assert len({image["label"] for image in content["images"]}) >= 3


def test_attacks_are_within_the_radii_and_grow_stronger(content: dict[str, Any]) -> None:
    np.testing.assert_allclose(content["radii"], EPS * np.arange(1, 9) / 4)
    broken = 0
    for i in range(6):
        inputs = examples.inputs(content, i).astype(np.float64)
        reached = np.abs(inputs[1:] - inputs[0]).reshape(8, -1).max(axis=1)
        assert (reached <= np.array(content["radii"]) + 1e-7).all()
        assert inputs.min() >= 0
        assert inputs.max() <= 1
        margins = examples.values(content, i, "margin")
        assert margins == sorted(margins, reverse=True)
        assert margins[1] < margins[0]
        broken += margins[-1] < 0
    assert broken >= 3  # at twice the eps of a network trained for 3 epochs
    assert robust_counts(content) == [
        sum(examples.values(content, i, "margin")[k] > 0 for i in range(6)) for k in range(1, 9)
    ]


def test_attacks_are_stronger_than_noise(with_examples: Path, content: dict[str, Any]) -> None:
    classifier = OnnxRuntimeClassifier(with_examples / "model.onnx")
    random = np.random.default_rng(0)
    for i, image in enumerate(content["images"]):
        noise = random.choice([-EPS, EPS], (50, *content["plane"]))
        noisy = np.clip(examples.clean(content, i) / 255 + noise, 0, 1).astype(np.float32)
        assert (
            examples.values(content, i, "margin")[4]
            < examples.margins(classifier(noisy), image["label"]).min()
        )


def test_stronger_example_of_a_smaller_radius_is_kept(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    def no_attack_above(_: Any, pixels: Any, __: Any, threat: Threat, **options: Any) -> Any:
        return pgd(_, pixels, __, threat, **options) if threat.eps < 0.04 else pixels

    monkeypatch.setattr(module, "pgd", no_attack_above)
    made = make_examples(bundle, AttackOptions(images=3, steps=3), device="cpu")
    for image in made["images"]:
        assert image["attacks"][0]["margin"] < image["clean"]["margin"]
        assert image["attacks"][1:] == [image["attacks"][0]] * 7


def test_l2_attacks_are_within_the_radii(bundle: Bundle) -> None:
    made = make_examples(bundle, AttackOptions(images=2, steps=5), Threat("L2", 0.5), device="cpu")
    for i in range(2):
        inputs = examples.inputs(made, i).astype(np.float64)
        lengths = np.linalg.norm((inputs[1:] - inputs[0]).reshape(8, -1), axis=1)
        assert (lengths <= np.array(made["radii"]) + 1e-6).all()
        assert lengths[0] > 0.05
    assert made["threat"] == {"norm": "L2", "eps": 0.5}


def test_same_options_give_the_same_file(bundle: Bundle) -> None:
    contents = []
    for seed in (1, 1, 2):
        make_examples(bundle, AttackOptions(images=2, steps=2, seed=seed), device="cpu")
        contents.append(bundle.file("examples.json").read_bytes())
    assert contents[0] == contents[1] != contents[2]
    assert Bundle.open(bundle.path).files("examples") == ["examples.json"]


def test_large_images_are_limited_in_number(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 3 * 9 * 192 + 1)
    assert len(make_examples(bundle, AttackOptions(steps=1), device="cpu")["images"]) == 3


def test_eps_zero_is_an_error(bundle: Bundle) -> None:
    with pytest.raises(InvalidValue, match="--eps"):
        make_examples(bundle, threat=Threat("Linf", 0.0))


def test_quantization_does_not_increase_the_distance() -> None:
    random = np.random.default_rng(0)
    clean = random.integers(0, 256, (40, 3, 5, 5), np.uint8)
    adversarial = (clean / 255 + random.uniform(-0.03, 0.03, clean.shape)).clip(0, 1).astype(np.float32)
    clean[0] = adversarial[0] = 0
    delta, scale = quantize(clean, adversarial)
    restored = dequantize(clean, delta, scale)
    change, before = np.abs(restored - clean / 255.0), np.abs(adversarial - clean / 255.0)
    assert (change <= before + 1e-7).all()
    assert (before - change <= scale.reshape(-1, 1, 1, 1) + 1e-7).all()
    assert np.abs(delta[1:]).reshape(39, -1).max(axis=1).min() == 127
    assert not delta[0].any()


def test_bundle_without_examples(trained: Path) -> None:
    assert read_examples(Bundle.open(trained), [3, 8, 8]) is None


@pytest.mark.parametrize(
    ("key", "value"), [("weights_sha256", "0" * 64), ("labels", ["a"]), ("plane", [3, 9, 9]), ("schema", 2)]
)
def test_examples_of_another_network_are_an_error(
    with_examples: Path, bundle: Bundle, key: str, value: Any, content: dict[str, Any]
) -> None:
    bundle.write({"examples.json": json.dumps({**content, key: value})}, "examples")
    with pytest.raises(BundleError, match="robust-export page --model"):
        read_examples(bundle, [3, 8, 8])
    bundle.write({"examples.json": "no JSON"}, "examples")
    with pytest.raises(BundleError, match="cannot be read"):
        read_examples(bundle, [3, 8, 8])
