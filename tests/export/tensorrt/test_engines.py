"""Engines built by TensorRT for RTX, and the errors of TensorRT and of our checks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robust_export.bundle import ONNX_FILES
from robust_export.errors import ArtifactError, InvalidValue, UnknownName
from robust_export.export.tensorrt.builder import Batch, BuildRefused, Options, check_options
from robust_export.export.tensorrt.engines import (
    build_engine,
    build_engines,
    format_capability,
    parse_network,
    target_capabilities,
)
from robust_export.export.tensorrt.graph import read_graph
from robust_export.export.tensorrt.inspect import Layer, check_engine, check_network
from robust_export.export.tensorrt.monitor import Monitor
from robust_export.runtimes.tensorrt.variants import Variant

KNOWN = [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)]
TURING_LACKS = {"fp32": "FP32 GEMM is not supported", "bf16": "b16", "int8": "FP32 GEMM is not supported"}


@pytest.mark.parametrize("precision", ONNX_FILES)
def test_every_compute_capability(all_precisions: Path, rtx: Variant, plugin: Path, precision: str) -> None:
    parsed = parse_network(read_graph(all_precisions / ONNX_FILES[precision], "library"), precision, rtx)
    assert parsed.plugin_layers == len(parsed.graph.sparta)
    assert parsed.plugin_file == plugin
    refused: dict[tuple[int, int], str] = {}
    engines = {}
    for engine in build_engines(parsed, on_refused=lambda c, e: refused.update({c: str(e)})):
        engines[engine.capability] = engine.plan
    assert set(KNOWN) <= {*engines, *refused}
    assert set(refused) == ({(7, 5)} if precision in TURING_LACKS else set())
    for message in refused.values():
        assert TURING_LACKS[precision] in message
    assert all(len(plan) > 10_000 for plan in engines.values())
    assert len(set(engines.values())) == len(engines)


@pytest.mark.parametrize("precision", ONNX_FILES)
def test_function_body_builds(all_precisions: Path, rtx: Variant, precision: str) -> None:
    parsed = parse_network(read_graph(all_precisions / ONNX_FILES[precision], "none"), precision, rtx)
    assert parsed.plugin_layers == 0
    assert parsed.plugin_file is None
    engines = list(build_engines(parsed, [(8, 0), (12, 0)]))
    assert [engine.capability for engine in engines] == [(8, 0), (12, 0)]
    assert all(len(engine.plan) > 10_000 for engine in engines)
    assert engines[0].plan != engines[1].plan


def test_function_body_needs_no_library(trained: Path, rtx: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_EXPORT_TRT_LIBRARY", "")
    message = r"ROBUST_EXPORT_TRT_LIBRARY is set to an empty string\n.*--plugin none"
    with pytest.raises(ArtifactError, match=message):
        parse_network(read_graph(trained / "model.onnx"), "fp32", rtx)
    engine = build_engine(trained / "model.onnx", "fp32", variant="rtx", plugin="none", capability=(8, 9))
    assert engine.capability == (8, 9)
    assert not engine.inspected


def test_fused_additions_are_plugin_layers(trained: Path, rtx: Variant, plugin: Path) -> None:
    plain, fused = (
        parse_network(read_graph(trained / "model.onnx", fuse_add=f), "fp32", rtx) for f in (False, True)
    )
    assert fused.plugin_layers == plain.plugin_layers
    assert len(fused.layers) < len(plain.layers)
    [engine] = build_engines(fused, [(8, 9)])
    assert engine.plan


def test_target_capabilities(rtx: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "robust_export.export.tensorrt.engines"
    monkeypatch.setattr(f"{module}.gpu_capability", lambda: None)
    assert set(target_capabilities(rtx)) == set(rtx.capabilities)
    assert list(target_capabilities(rtx, [(12, 0), (8, 9)])) == [(12, 0), (8, 9)]
    with pytest.raises(InvalidValue, match=r"9\.0; TensorRT for RTX .* builds for 7\.5, 8\.0"):
        target_capabilities(rtx, [(9, 0)])
    tensorrt = replace(rtx, name="tensorrt")
    with pytest.raises(ArtifactError, match=r"needs the GPU .*--flavor rtx"):
        target_capabilities(tensorrt)
    monkeypatch.setattr(f"{module}.gpu_capability", lambda: (8, 9))
    assert target_capabilities(rtx) == {(8, 9): rtx.trt.ComputeCapability.CURRENT}
    assert target_capabilities(tensorrt) == target_capabilities(tensorrt, [(8, 9)]) == {(8, 9): None}
    with pytest.raises(InvalidValue, match=r"8\.6; .* for this machine's GPU, which has 8\.9"):
        target_capabilities(tensorrt, [(8, 9), (8, 6)])


def test_no_gpu_and_no_capability_raises(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robust_export.export.tensorrt.engines.gpu_capability", lambda: None)
    with pytest.raises(ArtifactError, match="none was given"):
        build_engine(trained / "model.onnx", "fp32", variant="rtx", plugin="none")


def test_refused_capability_raises(trained: Path, rtx: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = parse_network(read_graph(trained / "model.onnx", "none"), "fp32", rtx)
    with pytest.raises(BuildRefused, match=r"compute capability 7\.5: .* FP32 GEMM is not supported"):
        list(build_engines(parsed, [(7, 5)], on_refused=lambda *_: None))
    monkeypatch.setattr(Variant, "capabilities", {(7, 5): rtx.capabilities[7, 5]})
    monkeypatch.setattr("robust_export.export.tensorrt.engines.gpu_capability", lambda: None)
    with pytest.raises(BuildRefused, match=r"compute capability 7\.5"):  # no engine was built
        list(build_engines(parsed, on_refused=lambda *_: None))


# --- options ---


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 3), (1, 4, 3), (-1, -1, -1)])
def test_invalid_batch_raises(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidValue, match="batch is"):
        Batch(*sizes)


def test_invalid_options_raise(rtx: Variant, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="workspace is 0 GiB"):
        Options(workspace=0)
    with pytest.raises(UnknownName, match="hardware compatibility 'ampere'"):
        Options(hardware_compatible="ampere")
    for options, word in (
        (Options(timing_cache=tmp_path / "x"), "timing cache"),
        (Options(version_compatible=True), "lean runtime"),
        (Options(hardware_compatible="ampere_plus"), "hardware compatibility"),
    ):
        with pytest.raises(ArtifactError, match=word):
            check_options(rtx, options)
    check_options(rtx, Options(tf32=True, workspace=1))


class Spy:
    """A trt.Builder that keeps the last configuration and profile."""

    def __init__(self, builder: Any) -> None:
        self.builder, self.config, self.profile = builder, None, None

    def create_builder_config(self) -> Any:
        self.config = self.builder.create_builder_config()
        return self.config

    def create_optimization_profile(self) -> Any:
        self.profile = self.builder.create_optimization_profile()
        return self.profile

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        return self.builder.build_serialized_network(network, config)


@pytest.mark.parametrize("tf32", [False, True])
def test_options_reach_tensorrt(trained: Path, rtx: Variant, tf32: bool) -> None:
    parsed = parse_network(read_graph(trained / "model.onnx", "none"), "fp32", rtx)
    spy = Spy(parsed.network.builder)
    parsed.network.builder = spy
    [_] = build_engines(parsed, [(8, 9)], Options(Batch(2, 3, 5), tf32=tf32, workspace=0.5))
    config, profile = spy.config, spy.profile
    assert config is not None
    assert profile is not None
    assert config.get_flag(rtx.trt.BuilderFlag.TF32) is tf32
    assert config.get_memory_pool_limit(rtx.trt.MemoryPoolType.WORKSPACE) == 1 << 29
    assert config.get_compute_capability(0) == rtx.trt.ComputeCapability.SM89
    assert config.profiling_verbosity == rtx.trt.ProfilingVerbosity.DETAILED
    assert [tuple(shape) for shape in profile.get_shape("pixels")] == [(n, 3, 8, 8) for n in (2, 3, 5)]
    assert parsed.network.network.get_flag(rtx.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


# --- progress ---


def test_phases_are_reported(trained: Path, rtx: Variant) -> None:
    parsed = parse_network(read_graph(trained / "model.onnx", "none"), "fp32", rtx)
    phases: list[str] = []
    [_] = build_engines(parsed, [(8, 9)], monitor=Monitor(phases.append))
    assert "Building engine" in phases

    def broken(phase: str) -> None:
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        list(build_engines(parsed, [(8, 9)], monitor=Monitor(broken)))


# --- checks ---


def layers(kinds: str, precision: str = "fp32") -> list[Layer]:
    """Return layers by letters: p is a plugin, c a convolution."""
    names = {"p": "PLUGIN_V3", "c": "CONVOLUTION"}
    return [Layer(f"{kind}{i}", names[kind], precision, ()) for i, kind in enumerate(kinds)]


def test_check_network(trained: Path, rtx: Variant) -> None:
    graph = replace(read_graph(trained / "model.onnx"), sparta=("p0", "p1"), products=2)
    assert check_network(layers("ppcc"), graph, "fp32", rtx) == 2
    with pytest.raises(ArtifactError, match="made 1 plugin layers of the 2 Sparta nodes"):
        check_network(layers("pccc"), graph, "fp32", rtx)
    with pytest.raises(ArtifactError, match=r"are 2 in fp32 for .*; expected 2 in fp16: no engine"):
        check_network(layers("ppcc"), graph, "fp16", rtx)
    with pytest.raises(ArtifactError, match="1 in fp16, 1 in fp32"):
        check_network([*layers("ppc"), *layers("c", "fp16")], graph, "fp32", rtx)
    with pytest.raises(ArtifactError, match="3 in fp32"):
        check_network(layers("ppccc"), graph, "fp32", rtx)
    body = replace(graph, plugin="none")
    assert check_network([*layers("cc", "fp16"), *layers("cc")], body, "fp16", rtx) == 0
    with pytest.raises(ArtifactError, match="made 2 plugin layers"):
        check_network(layers("ppcc"), body, "fp32", rtx)


def test_wrong_precision_raises(all_precisions: Path, rtx: Variant, plugin: Path) -> None:
    for precision, requested in (("fp32", "fp16"), ("fp16", "fp32"), ("bf16", "fp16"), ("fp32", "int8")):
        with pytest.raises(ArtifactError, match=f"in {precision} for .*; expected .* in {requested}"):
            parse_network(read_graph(all_precisions / ONNX_FILES[precision]), requested, rtx)


def test_check_engine(trained: Path) -> None:
    graph = replace(read_graph(trained / "model.onnx"), sparta=("a", "b"))
    plugins: list[dict[str, Any]] = [{"Name": n, "LayerType": "PluginV3"} for n in "ab"]
    half = {"LayerType": "gemm", "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}]}
    single = {"LayerType": "gemm", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]}
    check_engine([*plugins, half], graph, "fp16")
    check_engine([*plugins, single], graph, "fp32")
    check_engine([*plugins, {"LayerType": "gemm"}], graph, "fp16")  # an inspector without types
    with pytest.raises(ArtifactError, match="has 1 plugin layers; expected 2"):
        check_engine([*plugins[:1], half], graph, "fp16")
    with pytest.raises(ArtifactError, match=r"no layer of the engine .* is in fp16"):
        check_engine([*plugins, single], graph, "fp16")


@pytest.mark.gpu
def test_engine_for_this_gpu_is_inspected(trained: Path) -> None:
    assert build_engine(trained / "model.onnx", "fp32").inspected


def test_format_capability() -> None:
    assert Counter(map(format_capability, KNOWN)) == Counter(["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
