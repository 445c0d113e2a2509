"""int8: scales and weights by their definition, the images they come from, and what stays float32."""

from __future__ import annotations

import json
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
from robust_export.export.bundle_onnx import export_bundle
from robust_export.export.calibration import KINDS, Calibration, calibration_images
from robust_export.export.exporter import check_exported, to_onnx
from robust_export.export.quantize import quantise
from robust_export.nn.load import load
from robust_export.nn.operator import DOMAIN, OPERATOR
from robust_export.nn.sparta import Sparta
from robust_export.runtimes.onnx_model import sparta_nodes
from robust_export.runtimes.registry import open_file
from tests.export.test_exporter import evaluate


def small() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), Sparta(8), nn.Conv2d(8, 5, 3), nn.Flatten())
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network.eval()


@pytest.fixture(scope="module")
def wide() -> onnx.ModelProto:
    return to_onnx(small(), 5)


@pytest.fixture(scope="module")
def pixels() -> Any:
    return np.random.default_rng(0).random((300, 3, 5, 5), dtype=np.float32)


@pytest.fixture(scope="module")
def narrow(wide: onnx.ModelProto, pixels: Any) -> onnx.ModelProto:
    return quantise(wide, pixels)


def values(model: onnx.ModelProto) -> dict[str, Any]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def test_weights_are_int8_symmetric_and_by_channel(narrow: onnx.ModelProto) -> None:
    found, convolutions = values(narrow), [n for n in narrow.graph.node if n.op_type == "Conv"]
    layers = [layer for layer in small() if isinstance(layer, nn.Conv2d)]
    for node, layer in zip(convolutions, layers, strict=True):
        weight = layer.weight.detach().numpy()
        integers, scale, zero = (found[name] for name in makers(narrow)[node.input[1]].input)
        assert integers.dtype == np.int8
        assert not zero.any()
        np.testing.assert_allclose(scale, np.abs(weight).max((1, 2, 3)) / 127.5, rtol=5e-3)
        np.testing.assert_allclose(
            integers * scale[:, None, None, None], weight, atol=0.51 * scale.max(), rtol=0
        )


def test_ranges_are_those_of_the_images(narrow: onnx.ModelProto, pixels: Any) -> None:
    """The 99.99th percentile of what PyTorch finds there, within a bin of ONNX Runtime's histogram."""
    network, found = small(), values(narrow)
    with torch.no_grad():
        first = network[0](torch.from_numpy(pixels))
        second = network[1](first)
    expected = [np.percentile(np.abs(plane), 99.99) for plane in (pixels, first.numpy(), second.numpy())]
    narrowing = [n for n in narrow.graph.node if n.op_type == "QuantizeLinear"]
    scales = [found[node.input[1]] * 127.5 for node in narrowing]
    assert not any(found[node.input[2]].any() for node in narrowing)
    np.testing.assert_allclose(scales, expected, rtol=0.05)


def test_one_outlier_does_not_stretch_the_range(wide: onnx.ModelProto, pixels: Any) -> None:
    outlier = pixels.copy()
    outlier[0, 0, 0, 0] = 3  # one of 22,500 values
    narrow = quantise(wide, outlier)
    first = next(node for node in narrow.graph.node if node.op_type == "QuantizeLinear")
    np.testing.assert_allclose(values(narrow)[first.input[1]] * 127.5, 1, rtol=0.01)


def test_sparta_and_the_logits_stay_float32(narrow: onnx.ModelProto) -> None:
    check_exported(narrow, 20)
    made = makers(narrow)
    assert [(f.domain, f.name) for f in narrow.functions] == [(DOMAIN, OPERATOR)]
    (gate,) = sparta_nodes(narrow)
    assert made[gate.input[0]].op_type == "DequantizeLinear"
    assert values(narrow)[gate.input[1]].dtype == np.float32
    assert made["logits"].op_type == "Reshape"  # torch's Flatten
    assert made[made["logits"].input[0]].op_type == "Conv"  # no 8 bits between it and the logits
    assert sum(node.op_type == "QuantizeLinear" for node in narrow.graph.node) == 3
    used = {name for node in narrow.graph.node for name in node.input}
    assert values(narrow).keys() <= used


def test_the_numbers_are_those_of_the_network_and_of_8_bits(narrow: onnx.ModelProto, pixels: Any) -> None:
    found = evaluate(narrow, {"pixels": pixels})
    with torch.no_grad():
        exact = small().double()(torch.from_numpy(pixels).double()).numpy()
    error = np.sqrt(((found - exact) ** 2).mean()) / exact.std()
    assert 1e-4 < error < 0.05


def test_the_same_images_give_the_same_bytes_and_others_do_not(
    wide: onnx.ModelProto, narrow: onnx.ModelProto, pixels: Any
) -> None:
    before = wide.SerializeToString()
    assert quantise(wide, pixels).SerializeToString() == narrow.SerializeToString()
    assert wide.SerializeToString() == before
    assert quantise(wide, pixels / 2).SerializeToString() != narrow.SerializeToString()


def test_it_says_nothing(
    wide: onnx.ModelProto, pixels: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    quantise(wide, pixels[:2])
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_many_batches_are_one_calibration(
    wide: onnx.ModelProto, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = values(quantise(wide, pixels))
    monkeypatch.setattr("robust_export.export.quantize.BATCH_PIXELS", 25 * 64)
    parts = values(quantise(wide, pixels))
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=0.03, atol=2)


def test_nothing_to_calibrate_on_and_nothing_to_quantise(wide: onnx.ModelProto, pixels: Any) -> None:
    with pytest.raises(InvalidValue, match="no images"):
        quantise(wide, pixels[:0])
    with pytest.raises(UnsupportedModel, match="nothing to quantise"):
        quantise(to_onnx(nn.Flatten(), 5), pixels)


@pytest.mark.parametrize("samples", [0, -1])
def test_calibrations_that_are_none(samples: int) -> None:
    with pytest.raises(InvalidValue, match=f"samples is {samples}"):
        Calibration(samples=samples)
    with pytest.raises(UnknownName, match="clean"):
        Calibration("noise")


def rows(images: Any) -> set[bytes]:
    return {row.tobytes() for row in np.asarray(images)}


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_is_on_training_images(kind: str, bundle: Bundle) -> None:
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


def test_attacked_images_are_harder(bundle: Bundle) -> None:
    """Than as many random points of the ball: the attack makes steps, not only a random start."""
    network, eps = load(bundle), bundle.threat.eps
    clean, hard = (
        torch.from_numpy(calibration_images(bundle, network, Calibration(k, 400))[0]) for k in KINDS[:2]
    )
    noise = torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        decided, moved, under_attack = (
            network(x).argmax(1) for x in (clean, (clean + eps * noise).clamp(0, 1), hard)
        )
    assert (decided != under_attack).sum() > 2 * (decided != moved).sum() > 0


def test_there_are_no_more_images_than_there_are(bundle: Bundle) -> None:
    found, facts = calibration_images(bundle, load(bundle), Calibration(samples=10**6))
    assert facts["samples"] == len(found) == bundle.manifest["provenance"]["data"]["train"]


def test_another_data_set_is_refused(bundle: Bundle) -> None:
    bundle.manifest["provenance"]["data"]["sha256"] = "0" * 64
    with pytest.raises(DataError, match="not the data set"):
        calibration_images(bundle, load(bundle), Calibration())


def test_a_bundles_file(bundle: Bundle) -> None:
    path = export_bundle(bundle, precision="int8", calibration=Calibration("both", 500))
    assert path == bundle.path / "model.int8.onnx"
    entry = Bundle.open(bundle.path).manifest["files"][path.name]
    assert (entry["precision"], entry["opset"]) == ("int8", 20)
    assert (entry["calibration"]["images"], entry["calibration"]["samples"]) == ("both", 500)
    facts, known = (
        {e.key: json.loads(e.value) for e in onnx.load(file).metadata_props}
        for file in (path, bundle.file("model.onnx"))
    )
    assert facts == known | {"robust_export.precision": "int8"}
    test = load_dataset("digits", "test", 8)
    images = test.batch(range(len(test)))[0]
    run, judge = open_file(path, kernel=False), open_file(path, "reference")
    found = run(images.numpy())
    with torch.no_grad():
        expected = load(bundle)(images).numpy()
    assert np.sqrt(((found - expected) ** 2).mean()) < 0.15 * expected.std()
    assert run.precision == judge.precision == "int8"
    # As the file says it, without ONNX Runtime's integer kernels, which saturate on CPUs without VNNI.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (plain,) = session.run(None, {"pixels": images.numpy()[:64]})
    np.testing.assert_allclose(judge(images.numpy()[:64]), plain, atol=1e-4 * np.abs(expected).max())
