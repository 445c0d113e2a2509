"""Real engines of TensorRT for RTX, and what it or we refuse."""

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
    targets,
)
from robust_export.export.tensorrt.graph import read_graph
from robust_export.export.tensorrt.inspect import Layer, check_engine, check_network
from robust_export.export.tensorrt.monitor import Monitor
from robust_export.runtimes.tensorrt.variants import Variant

KNOWN = [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)]
TURING_LACKS = {"fp32": "FP32 GEMM is not supported", "bf16": "b16", "int8": "FP32 GEMM is not supported"}


@pytest.mark.parametrize("kind", ["library", "none"])
@pytest.mark.parametrize("precision", ONNX_FILES)
def test_engines_for_every_compute_capability(
    precisions: Path, rtx: Variant, plugin: Path, precision: str, kind: str
) -> None:
    parsed = parse_network(read_graph(precisions / ONNX_FILES[precision], kind), precision, rtx)
    nodes = len(parsed.graph.sparta)
    assert parsed.plugin_layers == (nodes if kind == "library" else 0)
    assert parsed.plugin_file == (plugin if kind == "library" else None)
    refused: dict[tuple[int, int], str] = {}
    engines = {}
    for engine in build_engines(parsed, refused=lambda c, e: refused.update({c: str(e)})):
        engines[engine.capability] = engine.plan
    assert set(KNOWN) <= {*engines, *refused}
    assert set(refused) == ({(7, 5)} if precision in TURING_LACKS else set())
    for why in refused.values():
        assert TURING_LACKS[precision] in why
    assert all(len(plan) > 10_000 for plan in engines.values())
    assert len(set(engines.values())) == len(engines)


def test_the_body_needs_no_plugin_library(
    trained: Path, rtx: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUST_EXPORT_TRT_LIBRARY", "")
    with pytest.raises(ArtifactError, match=r"ROBUST_EXPORT_TRT_LIBRARY is set to nothing\n.*--plugin none"):
        parse_network(read_graph(trained / "model.onnx"), "fp32", rtx)
    engine = build_engine(trained / "model.onnx", "fp32", flavor="rtx", plugin="none", capability=(8, 9))
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


def test_which_compute_capabilities(rtx: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "robust_export.export.tensorrt.engines"
    monkeypatch.setattr(f"{module}.gpu_capability", lambda: None)
    assert set(targets(rtx)) == set(rtx.capabilities)
    assert list(targets(rtx, [(12, 0), (8, 9)])) == [(12, 0), (8, 9)]
    with pytest.raises(InvalidValue, match=r"9\.0; TensorRT for RTX .* builds for 7\.5, 8\.0"):
        targets(rtx, [(9, 0)])
    proper = replace(rtx, name="tensorrt")  # which builds for the GPU that is there
    with pytest.raises(ArtifactError, match=r"needs the GPU .*--flavor rtx"):
        targets(proper)
    monkeypatch.setattr(f"{module}.gpu_capability", lambda: (8, 9))
    assert targets(rtx) == {(8, 9): rtx.trt.ComputeCapability.CURRENT}
    assert targets(proper) == targets(proper, [(8, 9)]) == {(8, 9): None}
    with pytest.raises(InvalidValue, match=r"8\.6; .* for the GPU that is there, which has 8\.9"):
        targets(proper, [(8, 9), (8, 6)])


def test_an_engine_for_no_gpu_in_particular(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robust_export.export.tensorrt.engines.gpu_capability", lambda: None)
    with pytest.raises(ArtifactError, match="none was given"):
        build_engine(trained / "model.onnx", "fp32", flavor="rtx", plugin="none")


def test_what_is_refused_is_an_error_where_it_was_asked_for(trained: Path, rtx: Variant) -> None:
    parsed = parse_network(read_graph(trained / "model.onnx", "none"), "fp32", rtx)
    with pytest.raises(BuildRefused, match=r"compute capability 7\.5: .* FP32 GEMM is not supported"):
        list(build_engines(parsed, [(7, 5)], refused=lambda *_: None))
    only = replace(rtx)
    object.__setattr__(parsed, "flavor", only)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(only), "capabilities", {(7, 5): rtx.capabilities[7, 5]})
        with pytest.raises(BuildRefused, match=r"compute capability 7\.5"):  # nothing was built at all
            list(build_engines(parsed, refused=lambda *_: None))


# --- options ---


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 3), (1, 4, 3), (-1, -1, -1)])
def test_batches_that_are_none(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidValue, match="batch is"):
        Batch(*sizes)


def test_options_that_are_none(rtx: Variant, tmp_path: Path) -> None:
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
    """Stands between a network and TensorRT, and keeps the last configuration."""

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


def test_phases_are_told_and_a_failure_there_is_raised(trained: Path, rtx: Variant) -> None:
    parsed = parse_network(read_graph(trained / "model.onnx", "none"), "fp32", rtx)
    phases: list[str] = []
    [_] = build_engines(parsed, [(8, 9)], monitor=Monitor(phases.append))
    assert "Building engine" in phases

    def broken(phase: str) -> None:
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        list(build_engines(parsed, [(8, 9)], monitor=Monitor(broken)))


# --- what is proved ---


def layers(kinds: str, precision: str = "fp32") -> list[Layer]:
    """Return layers by letters: p a plugin's, c a convolution."""
    names = {"p": "PLUGIN_V3", "c": "CONVOLUTION"}
    return [Layer(f"{kind}{i}", names[kind], precision, ()) for i, kind in enumerate(kinds)]


def test_what_is_not_as_asked_is_refused(trained: Path, rtx: Variant) -> None:
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


def test_a_file_of_another_precision_is_refused(precisions: Path, rtx: Variant, plugin: Path) -> None:
    for precision, asked in (("fp32", "fp16"), ("fp16", "fp32"), ("bf16", "fp16"), ("fp32", "int8")):
        with pytest.raises(ArtifactError, match=f"in {precision} for .*; expected .* in {asked}"):
            parse_network(read_graph(precisions / ONNX_FILES[precision]), asked, rtx)


def test_an_engine_that_lost_something_is_refused(trained: Path) -> None:
    graph = replace(read_graph(trained / "model.onnx"), sparta=("a", "b"))
    plugins: list[dict[str, Any]] = [{"Name": n, "LayerType": "PluginV3"} for n in "ab"]
    half = {"LayerType": "gemm", "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}]}
    wide = {"LayerType": "gemm", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]}
    check_engine([*plugins, half], graph, "fp16")
    check_engine([*plugins, wide], graph, "fp32")
    check_engine([*plugins, {"LayerType": "gemm"}], graph, "fp16")  # an inspector that tells no types
    with pytest.raises(ArtifactError, match="has 1 plugin layers; expected 2"):
        check_engine([*plugins[:1], half], graph, "fp16")
    with pytest.raises(ArtifactError, match=r"no layer of the engine .* is in fp16"):
        check_engine([*plugins, wide], graph, "fp16")


@pytest.mark.gpu
def test_an_engine_for_this_gpu_is_read_back(trained: Path) -> None:
    assert build_engine(trained / "model.onnx", "fp32").inspected


def test_names_of_compute_capabilities() -> None:
    assert Counter(map(format_capability, KNOWN)) == Counter(["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
