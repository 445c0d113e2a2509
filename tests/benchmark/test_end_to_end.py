"""Benchmark of model.onnx: what is compared, and how it is reported. No test depends on real times."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from itertools import count

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from robust_export.benchmark import end_to_end, operator
from robust_export.benchmark.end_to_end import PEERS, TITLES, bench_bundle
from robust_export.benchmark.memory import copy_bandwidth
from robust_export.benchmark.networks import relu_variant, sparta_inputs
from robust_export.benchmark.operator import FUNCTION_BODY, FUSED_BLOCKED, FUSED_NCHW, bench_operator
from robust_export.bundle import Bundle
from robust_export.cli import cli
from robust_export.errors import BuildError, BundleError, InvalidValue, UnknownName
from robust_export.nn.models import create_model
from robust_export.nn.sparta import Sparta

QUICK = ("relu", "body", "eager")


@pytest.fixture(autouse=True)
def small_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the bandwidth by one copy of 1 MiB."""
    for module in (end_to_end, operator):
        monkeypatch.setattr(module, "copy_bandwidth", partial(copy_bandwidth, megabytes=1, rounds=1))


def test_copy_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of 1 MiB in 1 s reads and writes 2 MiB/s."""
    ticks = count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    assert copy_bandwidth(2, megabytes=1, rounds=1) == 2 * (1 << 20)


def test_relu_variant_has_the_same_weights() -> None:
    torch.manual_seed(0)
    network = create_model("r18_sparta").eval()  # w = 0 and b = 0: equals ReLU
    variant = relu_variant(network)
    assert not any(isinstance(module, Sparta) for module in variant.modules())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(variant(x), network(x))


def test_sparta_inputs() -> None:
    network = create_model("r18_sparta").eval()
    inputs = sparta_inputs(network, np.zeros((2, 3, 32, 32), np.float32))
    assert len(inputs) == 17
    assert inputs[0] == ((2, 64, 32, 32), 3)
    assert inputs[-1] == ((2, 512, 4, 4), 3)


def test_bundle_and_its_peers(bundle: Bundle) -> None:
    report = bench_bundle(bundle, batches=[1, 3], threads=[1], against=QUICK, rounds=1)
    assert [item.facts["batch"] for item in report.comparisons] == [1, 3]
    for comparison in report.comparisons:
        assert set(comparison.timings) == {PEERS[name] for name in QUICK}
        assert comparison.ratio(PEERS["relu"]) == 1
        assert comparison.facts["bytes"] == comparison.facts["batch"] * report.comparisons[0].facts["bytes"]
    assert (report.fused_nodes, report.sparta_nodes) == (0, 11)
    assert "no fused kernel" in report.missing[TITLES["fused"]]
    json.dumps(report.to_dict(), allow_nan=False)


def test_missing_runtime_is_reported(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    report = bench_bundle(bundle, batches=[1], threads=[1], against=["eager", "openvino"], rounds=1)
    assert "robust-export[openvino]" in report.missing["OpenVINO"]
    assert list(report.comparisons[0].timings) == ["PyTorch eager"]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"batches": [0]}, InvalidValue, "batch is 0"),
        ({"threads": []}, InvalidValue, "threads is empty"),
        ({"rounds": 0}, InvalidValue, "rounds is 0"),
        ({"against": ["openvinno"]}, UnknownName, "'openvino'"),
    ],
)
def test_bad_settings(
    bundle: Bundle, settings: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        bench_bundle(bundle, **settings)  # type: ignore[arg-type]


def test_nothing_to_measure(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InvalidValue, match=r"(?s)nothing to measure.*robust-export\[openvino\]"):
        bench_bundle(bundle, batches=[1], against=["openvino"])


def test_missing_model_onnx(bundle: Bundle) -> None:
    (bundle.path / "model.onnx").unlink()
    with pytest.raises(BundleError):
        bench_bundle(Bundle.open(bundle.path))


def test_command(bundle: Bundle) -> None:
    arguments = [
        "bench",
        "--model",
        str(bundle.path),
        "--batch",
        "2",
        "--rounds",
        "1",
        "--against",
        "relu,body",
    ]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    for word in ("batch 2, 8x8, 1 thread", "ReLU twin", "1.000", "GB/s"):
        assert word in result.stdout
    assert "not measured: ONNX Runtime, fused kernel" in result.stderr
    result_json = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert {"schema", "model", "runs", "missing", "fused_nodes", "sparta_nodes"} <= result_json.keys()
    assert {"median", "low", "high", "calls", "ratio"} == result_json["runs"][0]["timings"][
        PEERS["relu"]
    ].keys()
    result = CliRunner().invoke(cli, ["bench", "--model", str(bundle.path), "--batch", "one"])
    assert result.exit_code == 2
    assert "--batch is 'one'" in result.stderr


def test_operator_needs_the_kernel() -> None:
    with pytest.raises(BuildError, match="no fused kernel"):
        bench_operator([(1, 16, 4, 4)])


@pytest.mark.usefixtures("library")
def test_operator_in_both_layouts(bundle: Bundle) -> None:
    wide, narrow = bench_operator([(1, 32, 8, 8), (2, 5, 9, 9)], rounds=1)
    assert set(wide.timings) == {FUNCTION_BODY, FUSED_NCHW, FUSED_BLOCKED}
    assert set(narrow.timings) == {FUNCTION_BODY, FUSED_NCHW}
    assert wide.facts["bytes"] == 2 * 4 * 32 * 64
    report = bench_bundle(bundle, batches=[1], threads=[1], against=["relu"], rounds=1, operator=True)
    assert report.fused_nodes == 11
    assert list(report.comparisons[0].timings) == [TITLES["fused"], PEERS["relu"]]
    assert [1, 8, 8, 8] in [item.facts["shape"] for item in report.comparisons[1:]]
