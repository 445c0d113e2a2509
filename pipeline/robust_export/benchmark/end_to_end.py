"""Benchmark of a bundle's model.onnx on the CPU: the fused kernel, and what else could run the network."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robust_export.benchmark.memory import copy_bandwidth
from robust_export.benchmark.networks import Shape, relu_variant, sparta_inputs
from robust_export.benchmark.operator import bench_operator
from robust_export.benchmark.results import BenchmarkReport, Comparison
from robust_export.bundle import Bundle
from robust_export.errors import BundleError, InvalidValue, RobustExportError, reason, unknown
from robust_export.export.exporter import export_onnx
from robust_export.kernels.libraries import ort_library, why_no_ort_library
from robust_export.nn.load import load
from robust_export.runtimes.classifier import Pixels
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.registry import open_file
from robust_export.utils.provenance import machine, now, versions
from robust_export.utils.timing import Call, measure

FUSED = "fused"
PEERS = {
    "relu": "ONNX Runtime, ReLU twin",
    "body": "ONNX Runtime, function body",
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "openvino": "OpenVINO",
    "openvino-relu": "OpenVINO, ReLU twin",
}
"""Titles of the implementations to compare with, by their name in --against. Titles are keys of the JSON."""

TITLES = {FUSED: "ONNX Runtime, fused kernel"} | PEERS

Say = Callable[[str], None]


def bench_bundle(
    bundle: str | Path | Bundle,
    *,
    batches: Sequence[int] = (1, 32),
    threads: Sequence[int] = (1,),
    against: Sequence[str] = tuple(PEERS),
    rounds: int = 10,
    operator: bool = False,
    say: Say = lambda line: None,
) -> BenchmarkReport:
    """Measure a bundle's model.onnx and its peers, with the same weights and inputs.

    Args:
        against: names of PEERS.
        operator: also measure Sparta alone, on each shape of feature map in the model.

    Raises:
        BundleError: if the bundle has no model.onnx.
        InvalidValue: for a batch, a number of threads or of rounds below 1.
        UnknownName: for an unknown peer.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if "model.onnx" not in opened.files("onnx"):
        raise BundleError(
            f"bundle {opened.path} has no model.onnx. Export it with "
            f"`robust-export onnx --model {opened.name}`."
        )
    return bench_network(
        load(opened), opened.file("model.onnx"), opened.name, batches=batches, threads=threads,
        against=against, rounds=rounds, operator=operator, say=say,
    )  # fmt: skip


def bench_network(
    network: nn.Module,
    file: Path,
    name: str,
    *,
    batches: Sequence[int],
    threads: Sequence[int],
    against: Sequence[str] = tuple(PEERS),
    rounds: int = 10,
    operator: bool = False,
    say: Say = lambda line: None,
) -> BenchmarkReport:
    """Measure `file`, exported from `network`, and its peers; see `bench_bundle`."""
    _check(batches, threads, against, rounds)
    model = OnnxRuntimeClassifier(file)
    fused = model.fused_nodes()
    comparisons: list[Comparison] = []
    missing = {} if fused else {TITLES[FUSED]: model.why_not_fused() or "no node ran fused"}
    with tempfile.TemporaryDirectory() as folder:
        relu_file = Path(folder) / "relu.onnx"
        if {"relu", "openvino-relu"} & set(against):
            export_onnx(relu_variant(network), relu_file, model.input_shape[1], model.input_shape[0])
        contestants = _Contestants(network, file, relu_file, against if not fused else (FUSED, *against))
        for count in threads:
            with _torch_threads(count):
                bandwidth = copy_bandwidth(count)
                for batch in batches:
                    say(f"batch {batch}, {count} thread{'s' if count > 1 else ''}")
                    pixels = np.random.default_rng(0).random((batch, *model.input_shape), dtype=np.float32)
                    calls, absent = contestants.prepare(pixels, count)
                    missing |= absent
                    check_any(calls, missing)
                    inputs = sparta_inputs(network, pixels)
                    timings = measure(calls, rounds=rounds)
                    comparisons.append(_comparison(name, pixels, count, timings, inputs, bandwidth))
                    if operator:
                        comparisons += _operator_alone(inputs, count, rounds, say)
    provenance = {"created": now(), "versions": versions(), "machine": machine(torch.device("cpu"))}
    return BenchmarkReport(name, comparisons, missing, fused, model.sparta_nodes, provenance)


def check_any(calls: Mapping[str, Call], missing: Mapping[str, str]) -> None:
    """Raise InvalidValue if there is nothing to measure."""
    if not calls:
        reasons = "\n  ".join(f"{name}: {why}" for name, why in missing.items())
        raise InvalidValue(f"there is nothing to measure:\n  {reasons}")


def _comparison(
    name: str, pixels: Pixels, threads: int, timings: Mapping[str, Any], inputs: Sequence[tuple[Shape, int]],
    bandwidth: float,
) -> Comparison:  # fmt: skip
    batch, _, height, width = pixels.shape
    moved = 8 * sum(math.prod(shape) for shape, _ in inputs)  # bytes: float32, read once and written once
    facts = {
        "batch": batch, "image_size": height, "bytes": moved, "copy_bandwidth": bandwidth,
        "copy_seconds": moved / bandwidth,
    }  # fmt: skip
    baseline = PEERS["relu"] if PEERS["relu"] in timings else next(iter(timings))
    return Comparison(f"{name}: batch {batch}, {height}x{width}", threads, baseline, timings, facts)


def _operator_alone(
    inputs: Sequence[tuple[Shape, int]], threads: int, rounds: int, say: Say
) -> list[Comparison]:
    """Measure Sparta alone on each shape of feature map."""
    if ort_library() is None:
        say(f"Sparta alone is not measured: {why_no_ort_library()}")
        return []
    comparisons = []
    for kernel_size in sorted({size for _, size in inputs}):
        shapes = list(dict.fromkeys(shape for shape, size in inputs if size == kernel_size))
        comparisons += bench_operator(
            shapes, threads=threads, kernel_size=kernel_size, rounds=rounds, say=say
        )
    return comparisons


@dataclass(frozen=True)
class _Contestants:
    """The implementations of a network that are compared.

    Attributes:
        file, relu_file: the network and its ReLU variant as ONNX files.
        names: of TITLES.
    """

    network: nn.Module
    file: Path
    relu_file: Path
    names: Sequence[str]

    def prepare(self, pixels: Pixels, threads: int) -> tuple[dict[str, Call], dict[str, str]]:
        """Return a call on `pixels` by title, and the titles that this machine lacks, with the reason."""
        calls: dict[str, Call] = {}
        missing: dict[str, str] = {}
        for name in self.names:
            try:
                calls[TITLES[name]] = _call(self._open(name, pixels, threads), pixels)
            except (RobustExportError, RuntimeError) as error:
                missing[TITLES[name]] = reason(error)
        return calls, missing

    def _open(self, name: str, pixels: Pixels, threads: int) -> Callable[[Pixels], object]:
        settings: dict[str, Any] = {"batch_size": len(pixels), "threads": threads}
        makers: dict[str, Callable[[], Callable[[Pixels], object]]] = {
            FUSED: lambda: OnnxRuntimeClassifier(self.file, **settings),
            "relu": lambda: OnnxRuntimeClassifier(self.relu_file, **settings),
            "body": lambda: OnnxRuntimeClassifier(self.file, kernel=False, **settings),
            "eager": lambda: _eager(self.network),
            "compile": lambda: _compiled(self.network, pixels),
            "openvino": lambda: open_file(self.file, "openvino", **settings),
            "openvino-relu": lambda: open_file(self.relu_file, "openvino", **settings),
        }
        return makers[name]()


def _call(classifier: Callable[[Pixels], object], pixels: Pixels) -> Call:
    return lambda: classifier(pixels)


def _eager(network: nn.Module) -> Callable[[Pixels], object]:
    def run(pixels: Pixels) -> object:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels)).numpy()

    return run


def _compiled(network: nn.Module, pixels: Pixels) -> Callable[[Pixels], object]:
    torch.compiler.reset()
    run = _eager(torch.compile(network, dynamic=False))  # type: ignore[arg-type]
    run(pixels)
    return run


def _check(batches: Sequence[int], threads: Sequence[int], against: Sequence[str], rounds: int) -> None:
    check_counts(batch=batches, threads=threads, rounds=[rounds])
    for peer in against:
        if peer not in PEERS:
            raise unknown("peer", peer, PEERS)


def check_counts(**values: Sequence[int]) -> None:
    """Raise InvalidValue for a list that is empty or has a number below 1."""
    for name, numbers in values.items():
        if not numbers or min(numbers) < 1:
            raise InvalidValue(f"{name} is {', '.join(map(str, numbers)) or 'empty'}; expected 1 or more")


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
