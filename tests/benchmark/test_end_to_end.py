"""Benchmarks: what is compared with what, and how. No test depends on how long anything really takes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from robust_export.benchmark.end_to_end import PEERS, TITLES, bench_bundle, relu_variant, sparta_planes
from robust_export.benchmark.operator import BLOCKS, BODY, PLANES, bench_operator
from robust_export.bundle import Bundle
from robust_export.cli import cli
from robust_export.errors import BuildError, BundleError, InvalidValue, UnknownName
from robust_export.nn.models import create_model
from robust_export.nn.sparta import Sparta
from robust_export.utils.timing import Timing, copy_bandwidth, measure

QUICK = ("relu", "body", "eager")


class Clock:
    """A clock that only what is measured moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.log: list[str] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def takes(self, name: str, *seconds: float) -> Callable[[], None]:
        """Return a call that takes these seconds in turn, then the last of them for ever."""
        left = list(seconds)

        def call() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_medians_and_quartiles_of_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    slow_start = clock.takes("a", 100, 50, 1)  # the first call of all, and one that settles
    found = measure({"a": slow_start, "b": clock.takes("b", 3)}, rounds=4, settle=0, turn=0)
    assert found == {"a": Timing(1, 1, 1, 4), "b": Timing(3, 3, 3, 4)}


def test_turns_change_their_order_and_last_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = measure({"a": clock.takes("a", 1), "b": clock.takes("b", 2)}, rounds=2, settle=2, turn=4)
    assert "".join(clock.log) == "ab" + "aaaaaa" + "bbb" + "bbb" + "aaaaaa"
    assert (found["a"].calls, found["b"].calls) == (8, 4)


def test_a_copy_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(np, "copyto", lambda target, source: clock.takes("copy", 0.5)())
    assert copy_bandwidth(2, megabytes=1, rounds=1) == 2 * (1 << 20)


def test_the_relu_twin_has_the_same_weights() -> None:
    torch.manual_seed(0)
    network = create_model("r18_sparta").eval()  # its gates are ReLU's still
    twin = relu_variant(network)
    assert not any(isinstance(module, Sparta) for module in twin.modules())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(twin(x), network(x))


def test_planes_are_those_of_every_call() -> None:
    network = create_model("r18_sparta").eval()
    shapes = sparta_planes(network, np.zeros((2, 3, 32, 32), np.float32))
    assert len(shapes) == 17
    assert shapes[0] == ((2, 64, 32, 32), 3)
    assert shapes[-1] == ((2, 512, 4, 4), 3)


def test_a_bundle_against_its_peers(bundle: Bundle) -> None:
    found = bench_bundle(bundle, batches=[1, 3], threads=[1], against=QUICK, rounds=1)
    assert [run.facts["batch"] for run in found.runs] == [1, 3]
    for run in found.runs:
        assert set(run.timings) == {PEERS[name] for name in QUICK}
        assert run.ratio(PEERS["relu"]) == 1
        assert run.facts["bytes"] == run.facts["batch"] * found.runs[0].facts["bytes"]
    assert (found.fused_nodes, found.sparta_nodes) == (0, 11)
    assert "no fused kernel" in found.missing[TITLES["fused"]]
    json.dumps(found.to_dict(), allow_nan=False)


def test_what_is_not_there_is_said(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = bench_bundle(bundle, batches=[1], threads=[1], against=["eager", "openvino"], rounds=1)
    assert "robust-export[openvino]" in found.missing["OpenVINO"]
    assert list(found.runs[0].timings) == ["PyTorch eager"]


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"batches": [0]}, InvalidValue, "batch is 0"),
        ({"threads": []}, InvalidValue, "threads is empty"),
        ({"rounds": 0}, InvalidValue, "rounds is 0"),
        ({"against": ["openvinno"]}, UnknownName, "'openvino'"),
    ],
)
def test_nonsense_is_refused(
    bundle: Bundle, settings: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        bench_bundle(bundle, **settings)  # type: ignore[arg-type]


def test_nothing_to_measure(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InvalidValue, match=r"(?s)nothing to measure.*robust-export\[openvino\]"):
        bench_bundle(bundle, batches=[1], against=["openvino"])


def test_a_bundle_without_a_file(bundle: Bundle) -> None:
    (bundle.path / "model.onnx").unlink()
    with pytest.raises(BundleError):
        bench_bundle(Bundle.open(bundle.path))


def test_the_command(bundle: Bundle) -> None:
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
    found = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert {"schema", "model", "runs", "missing", "fused_nodes", "sparta_nodes"} <= found.keys()
    assert {"median", "low", "high", "calls", "ratio"} == found["runs"][0]["timings"][PEERS["relu"]].keys()
    result = CliRunner().invoke(cli, ["bench", "--model", str(bundle.path), "--batch", "one"])
    assert result.exit_code == 2
    assert "--batch is 'one'" in result.stderr


def test_the_operator_needs_its_kernel() -> None:
    with pytest.raises(BuildError, match="no fused kernel"):
        bench_operator([(1, 16, 4, 4)])


@pytest.mark.usefixtures("library")
def test_the_operator_in_both_layouts(bundle: Bundle) -> None:
    wide, narrow = bench_operator([(1, 32, 8, 8), (2, 5, 9, 9)], rounds=1)
    assert set(wide.timings) == {BODY, PLANES, BLOCKS}
    assert set(narrow.timings) == {BODY, PLANES}
    assert wide.facts["bytes"] == 2 * 4 * 32 * 64
    found = bench_bundle(bundle, batches=[1], threads=[1], against=["relu"], rounds=1, operator=True)
    assert found.fused_nodes == 11
    assert list(found.runs[0].timings) == [TITLES["fused"], PEERS["relu"]]
    assert [1, 8, 8, 8] in [run.facts["shape"] for run in found.runs[1:]]
