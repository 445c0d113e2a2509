"""Benchmark of TensorRT engines on this machine's GPU: the plugin, and what else could run the network.

Only the network is timed: pixels and logits stay in the GPU's memory. The tests replace TensorRT and the GPU;
docs/gpu.md has measurements.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from robust_export.benchmark.end_to_end import check_any, check_counts
from robust_export.benchmark.networks import relu_variant
from robust_export.benchmark.results import BenchmarkReport, Comparison
from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, RobustExportError, reason, unknown
from robust_export.export.bundle_onnx import BF16_OPSET
from robust_export.export.cast import cast_model
from robust_export.export.exporter import DEFAULT_OPSET, to_onnx
from robust_export.export.tensorrt.builder import Batch, Options
from robust_export.export.tensorrt.engines import build_engines, engine_facts, parse_network
from robust_export.export.tensorrt.graph import read_graph
from robust_export.nn.load import load
from robust_export.runtimes.classifier import Pixels
from robust_export.runtimes.tensorrt.classifier import TensorRTClassifier
from robust_export.runtimes.tensorrt.gpu_info import gpu_capability
from robust_export.runtimes.tensorrt.variants import load_variant
from robust_export.utils.provenance import machine, now, versions
from robust_export.utils.timing import Call, measure

PEERS = {
    "plugin": "TensorRT, plugin library",
    "aot": "TensorRT, kernels in the engine",
    "body": "TensorRT, function body",
    "relu": "TensorRT, ReLU twin",
    "compile": "torch.compile",
}
"""Titles of the implementations, by their name in --against. Titles are keys of the JSON."""

PLUGINS = {"plugin": "library", "aot": "aot", "body": "none", "relu": "none"}
HALF_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

Say = Callable[[str], None]


def bench_engines(
    bundle: str | Path | Bundle, *, precision: str = "fp32", batches: Sequence[int] = (1, 32),
    against: Sequence[str] = tuple(PEERS), rounds: int = 10, say: Say = lambda line: None,
) -> BenchmarkReport:  # fmt: skip
    """Build engines of a bundle's network, one for each batch size, and measure them in turns.

    Engines are built in a temporary folder; the bundle is not changed.

    Raises:
        ArtifactError: if there is no GPU.
        InvalidValue: for a batch or a number of rounds below 1, or if nothing can be measured.
        UnknownName: for an unknown peer, or another precision than fp32, fp16 and bf16.
    """
    check_counts(batch=batches, rounds=[rounds])
    for peer in against:
        if peer not in PEERS:
            raise unknown("peer", peer, PEERS)
    if precision not in ("fp32", *HALF_DTYPES):
        raise unknown("precision", precision, ("fp32", *HALF_DTYPES))
    if gpu_capability() is None:
        raise ArtifactError("engines are measured on a GPU, but CUDA finds none on this machine")
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    spec = opened.recipe().model
    shape = (spec.in_chans, spec.image_size, spec.image_size)
    comparisons: list[Comparison] = []
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        contestants = _Contestants.export(load(opened), shape, precision, Path(folder), against)
        for batch in batches:
            say(f"batch {batch}")
            pixels = np.random.default_rng(0).random((batch, *shape), dtype=np.float32)
            calls, absent = contestants.prepare(pixels)
            missing |= absent
            check_any(calls, missing)
            baseline = PEERS["relu"] if PEERS["relu"] in calls else next(iter(calls))
            title = f"{opened.name} in {precision}: batch {batch}, {shape[1]}x{shape[2]}"
            facts = {"batch": batch, "image_size": shape[1], "precision": precision}
            comparisons.append(Comparison(title, 1, baseline, measure(calls, rounds=rounds), facts))
    provenance = {"created": now(), "versions": versions(), "machine": machine(torch.device("cuda"))}
    return BenchmarkReport(
        opened.name, comparisons, missing, contestants.fused_nodes, contestants.sparta_nodes, provenance
    )


@dataclass
class _Contestants:
    """The implementations of a network that are compared.

    Attributes:
        file, relu_file: the network and its ReLU variant as ONNX files in `precision`; the second is None if
            it is not compared.
        names: of PEERS.
        fused_nodes, sparta_nodes: of the last engine with the plugin library.
    """

    network: nn.Module
    file: Path
    relu_file: Path | None
    precision: str
    names: Sequence[str]
    fused_nodes: int = 0
    sparta_nodes: int = 0

    @classmethod
    def export(
        cls, network: nn.Module, shape: tuple[int, int, int], precision: str, folder: Path,
        names: Sequence[str],
    ) -> _Contestants:  # fmt: skip
        """Export the network, and its ReLU variant if it is compared, into `folder`."""
        file = _export(network, shape, precision, folder / "sparta.onnx")
        relu_file = None
        if "relu" in names:
            relu_file = _export(relu_variant(network), shape, precision, folder / "relu.onnx")
        return cls(network, file, relu_file, precision, names)

    def prepare(self, pixels: Pixels) -> tuple[dict[str, Call], dict[str, str]]:
        """Return a call on `pixels` by title, and the titles that this machine lacks, with the reason."""
        calls: dict[str, Call] = {}
        missing: dict[str, str] = {}
        for name in self.names:
            try:
                calls[PEERS[name]] = self._open(name, pixels)
            except (RobustExportError, RuntimeError) as error:
                missing[PEERS[name]] = reason(error)
        return calls, missing

    def _open(self, name: str, pixels: Pixels) -> Call:
        if name == "compile":
            return _compiled(self.network, pixels, self.precision)
        file = self.relu_file if name == "relu" and self.relu_file else self.file
        engine = _build(file, PLUGINS[name], self.precision, pixels)
        if name == "plugin":
            self.fused_nodes, self.sparta_nodes = engine.fused_nodes(), engine.sparta_nodes
        return lambda: engine.compute(len(pixels))


def _export(network: nn.Module, shape: tuple[int, int, int], precision: str, file: Path) -> Path:
    """Write the network as an ONNX file in a precision; return its path."""
    opset = BF16_OPSET if precision == "bf16" else DEFAULT_OPSET
    model = to_onnx(network, shape[1], shape[0], opset=opset)
    if precision in HALF_DTYPES:
        model = cast_model(model, precision)
    file.write_bytes(model.SerializeToString())
    return file


def _build(file: Path, plugin: str, precision: str, pixels: Pixels) -> TensorRTClassifier:
    """Build an engine for this batch size, and run it once on `pixels`."""
    batch = len(pixels)
    options = Options(Batch(batch, batch, batch))
    parsed = parse_network(read_graph(file, plugin), precision, load_variant())
    engine = next(build_engines(parsed, (), options))
    plan = file.with_suffix(".engine")
    plan.write_bytes(engine.plan)
    classifier = TensorRTClassifier(plan, facts=engine_facts(parsed, engine, options))
    classifier(pixels)
    return classifier


def _compiled(network: nn.Module, pixels: Pixels, precision: str) -> Call:
    torch.compiler.reset()
    device = torch.device("cuda")
    compiled = torch.compile(network.to(device), dynamic=False)
    x = torch.from_numpy(pixels).to(device)

    def run() -> None:
        dtype = HALF_DTYPES.get(precision)
        with torch.inference_mode(), torch.autocast("cuda", dtype, enabled=dtype is not None):
            compiled(x)
        torch.cuda.synchronize()

    run()
    return run
