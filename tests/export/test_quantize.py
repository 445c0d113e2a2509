"""int8 files: scales and weights, calibration images, and what stays float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from robust_export.bundle import Bundle
from robust_export.data.datasets import load_dataset
from robust_export.errors import DataError, InvalidValue, UnknownName, UnsupportedModel
from robust_export.export.calibration import CALIBRATION_IMAGES, Calibration, calibration_images
from robust_export.export.exporter import check_exported, to_onnx
from robust_export.export.quantize import quantize
from robust_export.nn.load import load
from robust_export.nn.onnx_operator import DOMAIN, OPERATOR
from robust_export.nn.sparta import Sparta
from robust_export.runtimes.onnx_model import sparta_nodes
from robust_export.runtimes.registry import open_file
from tests.export.networks import evaluate, parse_graph


def small() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), Sparta(8), nn.Conv2d(8, 5, 3), nn.Flatten())
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network.eval()


@pytest.fixture(scope="module")
def float_model() -> onnx.ModelProto:
    return to_onnx(small(), 5)


@pytest.fixture(scope="module")
def pixels() -> Any:
    return np.random.default_rng(0).random((300, 3, 5, 5), dtype=np.float32)


@pytest.fixture(scope="module")
def int8_model(float_model: onnx.ModelProto, pixels: Any) -> onnx.ModelProto:
    return quantize(float_model, pixels)


def values(model: onnx.ModelProto) -> dict[str, Any]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def test_weights_are_symmetric_int8_per_channel(int8_model: onnx.ModelProto) -> None:
    found, convolutions = values(int8_model), [n for n in int8_model.graph.node if n.op_type == "Conv"]
    layers = [layer for layer in small() if isinstance(layer, nn.Conv2d)]
    for node, layer in zip(convolutions, layers, strict=True):
        weight = layer.weight.detach().numpy()
        integers, scale, zero = (found[name] for name in producers(int8_model)[node.input[1]].input)
        assert integers.dtype == np.int8
        assert not zero.any()
        np.testing.assert_allclose(scale, np.abs(weight).max((1, 2, 3)) / 127.5, rtol=5e-3)
        np.testing.assert_allclose(
            integers * scale[:, None, None, None], weight, atol=0.51 * scale.max(), rtol=0
        )


def test_ranges_are_percentiles(int8_model: onnx.ModelProto, pixels: Any) -> None:
    """The 99.99th percentile in PyTorch, within a bin of ONNX Runtime's histogram."""
    network, found = small(), values(int8_model)
    with torch.no_grad():
        first = network[0](torch.from_numpy(pixels))
        second = network[1](first)
    expected = [np.percentile(np.abs(each), 99.99) for each in (pixels, first.numpy(), second.numpy())]
    quantisers = [n for n in int8_model.graph.node if n.op_type == "QuantizeLinear"]
    scales = [found[node.input[1]] * 127.5 for node in quantisers]
    assert not any(found[node.input[2]].any() for node in quantisers)
    np.testing.assert_allclose(scales, expected, rtol=0.05)


def test_outlier_does_not_change_the_range(float_model: onnx.ModelProto, pixels: Any) -> None:
    outlier = pixels.copy()
    outlier[0, 0, 0, 0] = 3  # one of 22,500 values
    int8_model = quantize(float_model, outlier)
    first = next(node for node in int8_model.graph.node if node.op_type == "QuantizeLinear")
    np.testing.assert_allclose(values(int8_model)[first.input[1]] * 127.5, 1, rtol=0.01)


def test_sparta_and_logits_stay_float32(int8_model: onnx.ModelProto) -> None:
    check_exported(int8_model, 20)
    made = producers(int8_model)
    assert [(f.domain, f.name) for f in int8_model.functions] == [(DOMAIN, OPERATOR)]
    (gate,) = sparta_nodes(int8_model)
    assert made[gate.input[0]].op_type == "DequantizeLinear"
    assert values(int8_model)[gate.input[1]].dtype == np.float32
    assert made["logits"].op_type == "Reshape"  # torch's Flatten
    assert made[made["logits"].input[0]].op_type == "Conv"  # not quantised
    assert sum(node.op_type == "QuantizeLinear" for node in int8_model.graph.node) == 3
    used = {name for node in int8_model.graph.node for name in node.input}
    assert values(int8_model).keys() <= used


def test_error_is_that_of_8_bits(int8_model: onnx.ModelProto, pixels: Any) -> None:
    found = evaluate(int8_model, {"pixels": pixels})
    with torch.no_grad():
        exact = small().double()(torch.from_numpy(pixels).double()).numpy()
    error = np.sqrt(((found - exact) ** 2).mean()) / exact.std()
    assert 1e-4 < error < 0.05


def test_quantise_is_deterministic(
    float_model: onnx.ModelProto, int8_model: onnx.ModelProto, pixels: Any
) -> None:
    before = float_model.SerializeToString()
    assert quantize(float_model, pixels).SerializeToString() == int8_model.SerializeToString()
    assert float_model.SerializeToString() == before
    assert quantize(float_model, pixels / 2).SerializeToString() != int8_model.SerializeToString()


def test_quantise_prints_nothing(
    float_model: onnx.ModelProto,
    pixels: Any,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    quantize(float_model, pixels[:2])
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_batches_give_the_same_ranges(
    float_model: onnx.ModelProto, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = values(quantize(float_model, pixels))
    monkeypatch.setattr("robust_export.export.quantize.BATCH_PIXELS", 25 * 64)
    parts = values(quantize(float_model, pixels))
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=0.03, atol=2)


def test_no_images_or_no_products_raise(float_model: onnx.ModelProto, pixels: Any) -> None:
    with pytest.raises(InvalidValue, match="no images"):
        quantize(float_model, pixels[:0])
    with pytest.raises(UnsupportedModel, match="nothing to quantize"):
        quantize(parse_graph("flat (float[N, 3, 5, 5] x) => (float[N, 75] y) {y = Flatten (x)}"), pixels)


@pytest.mark.parametrize("samples", [0, -1])
def test_invalid_calibration_raises(samples: int) -> None:
    with pytest.raises(InvalidValue, match=f"samples is {samples}"):
        Calibration(samples=samples)
    with pytest.raises(UnknownName, match="clean"):
        Calibration("noise")


def rows(images: Any) -> set[bytes]:
    return {row.tobytes() for row in np.asarray(images)}


@pytest.mark.parametrize("kind", CALIBRATION_IMAGES)
def test_calibration_images_are_training_images(kind: str, trained: Path) -> None:
    bundle = Bundle.open(trained)
    network = load(bundle)
    found, facts = calibration_images(bundle, network, Calibration(kind, 40))
    clean, _ = calibration_images(bundle, network, Calibration("clean", 40))
    recipe = bundle.recipe()
    train, val, test = (
        load_dataset("digits", split, 8, val_fraction=recipe.data.val_fraction)
        for split in ("train", "val", "test")
    )
    known = rows(train.batch(range(len(train)))[0])
    others = rows(val.batch(range(len(val)))[0]) | rows(test.batch(range(len(test)))[0])
    assert rows(clean) <= known - others
    assert facts == {"images": kind, "samples": 40, "data": "digits", "sha256": train.digest}
    assert found.dtype == np.float32
    assert found.shape == (40, 3, 8, 8)
    attacked = np.abs(found - clean).reshape(40, -1).max(1) > 0
    assert attacked.tolist() == [kind == "adversarial"] * 20 + [kind != "clean"] * 20
    assert np.abs(found - clean).max() <= recipe.threat.eps + 1e-6
    np.testing.assert_array_equal(calibration_images(bundle, network, Calibration(kind, 40))[0], found)


def test_adversarial_images_change_decisions(trained: Path) -> None:
    """They change more decisions than random points of the ball do."""
    bundle = Bundle.open(trained)
    network, eps = load(bundle), bundle.threat.eps
    clean, hard = (
        torch.from_numpy(calibration_images(bundle, network, Calibration(k, 400))[0])
        for k in CALIBRATION_IMAGES[:2]
    )
    noise = torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        decided, moved, under_attack = (
            network(x).argmax(1) for x in (clean, (clean + eps * noise).clamp(0, 1), hard)
        )
    assert (decided != under_attack).sum() > 2 * (decided != moved).sum() > 0


def test_samples_are_at_most_the_training_images(trained: Path) -> None:
    bundle = Bundle.open(trained)
    found, facts = calibration_images(bundle, load(bundle), Calibration(samples=10**6))
    assert facts["samples"] == len(found) == bundle.manifest["provenance"]["data"]["train"]


def test_other_data_set_raises(trained: Path) -> None:
    bundle = Bundle.open(trained)
    bundle.manifest["provenance"]["data"]["sha256"] = "0" * 64
    with pytest.raises(DataError, match="not the data set"):
        calibration_images(bundle, load(bundle), Calibration())


def test_bundle_file(all_precisions: Path) -> None:
    bundle = Bundle.open(all_precisions)
    path = bundle.file("model.int8.onnx")
    entry = bundle.manifest["files"][path.name]
    assert (entry["precision"], entry["opset"]) == ("int8", 20)
    assert (entry["calibration"]["images"], entry["calibration"]["samples"]) == ("both", 500)
    facts, known = (
        {e.key: json.loads(e.value) for e in onnx.load(file).metadata_props}
        for file in (path, bundle.file("model.onnx"))
    )
    assert facts == known | {"robust_export.precision": "int8"}
    test = load_dataset("digits", "test", 8)
    images = test.batch(range(len(test)))[0]
    classifier, reference = open_file(path, kernel=False), open_file(path, "reference")
    found = classifier(images.numpy())
    with torch.no_grad():
        expected = load(bundle)(images).numpy()
    assert np.sqrt(((found - expected) ** 2).mean()) < 0.15 * expected.std()
    assert classifier.precision == reference.precision == "int8"
    # Without ONNX Runtime's integer kernels, which saturate on CPUs without VNNI.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (plain,) = session.run(None, {"pixels": images.numpy()[:64]})
    np.testing.assert_allclose(reference(images.numpy()[:64]), plain, atol=1e-4 * np.abs(expected).max())
