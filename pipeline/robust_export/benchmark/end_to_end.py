"""Whole models: the exported file against its ReLU twin and against what one would run instead."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robust_export.benchmark.operator import Shape, bench_operator
from robust_export.benchmark.results import Bench, Run
from robust_export.bundle import Bundle
from robust_export.errors import BundleError, InvalidValue, RobustExportError, reason, unknown
from robust_export.export.exporter import export_onnx
from robust_export.kernels.libraries import ort_library, why_no_library
from robust_export.nn.load import load
from robust_export.nn.sparta import Sparta
from robust_export.runtimes.classifier import Pixels
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.registry import open_file
from robust_export.utils.provenance import machine, now, versions
from robust_export.utils.timing import Call, copy_bandwidth, measure

FUSED = "fused"
PEERS = {
    "relu": "ONNX Runtime, ReLU twin",
    "body": "ONNX Runtime, function body",
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "openvino": "OpenVINO",
    "openvino-relu": "OpenVINO, ReLU twin",
}
"""What a model is compared with, by the name that --against takes."""

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
) -> Bench:
    """Measure a bundle's model.onnx against its peers, on the same weights and inputs.

    Args:
        against: names of PEERS.
        operator: measure Sparta alone as well, on each of the planes that the model has.

    Raises:
        BundleError: if the bundle has no model.onnx.
        InvalidValue: for a batch, a number of threads or of rounds below 1.
        UnknownName: for a peer that is none.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if "model.onnx" not in opened.files("onnx"):
        raise BundleError(
            f"bundle {opened.path} has no model.onnx. Make it with "
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
) -> Bench:
    """Measure `file`, exported from `network`, against its peers; see `bench_bundle`."""
    _check(batches, threads, against, rounds)
    whole = OnnxRuntimeClassifier(file)
    plane, fused, nodes = whole.input_shape, whole.fused_nodes(), whole.sparta_nodes
    runs: list[Run] = []
    missing = {} if fused else {TITLES[FUSED]: whole.why_not_fused() or "no node ran fused"}
    with tempfile.TemporaryDirectory() as folder:
        twin = Path(folder) / "relu.onnx"
        if {"relu", "openvino-relu"} & set(against):
            export_onnx(relu_variant(network), twin, plane[1], plane[0])
        for count in threads:
            with _torch_threads(count):
                bandwidth = copy_bandwidth(count)
                for batch in batches:
                    say(f"batch {batch}, {count} thread{'s' if count > 1 else ''}")
                    pixels = np.random.default_rng(0).random((batch, *plane), dtype=np.float32)
                    peers = against if not fused else (FUSED, *against)
                    contestants, absent = _contestants(network, file, twin, pixels, count, peers)
                    missing |= absent
                    planes = sparta_planes(network, pixels)
                    moved = 8 * sum(math.prod(shape) for shape, _ in planes)
                    if not contestants:
                        reasons = "\n  ".join(f"{name}: {why}" for name, why in missing.items())
                        raise InvalidValue(f"there is nothing to measure:\n  {reasons}")
                    timings = measure(contestants, rounds=rounds)
                    reference = PEERS["relu"] if PEERS["relu"] in timings else next(iter(timings))
                    facts = {
                        "batch": batch, "image_size": plane[1], "bytes": moved,
                        "copy_bandwidth": bandwidth, "copy_seconds": moved / bandwidth,
                    }  # fmt: skip
                    title = f"{name}: batch {batch}, {plane[1]}x{plane[2]}"
                    runs.append(Run(title, count, reference, timings, facts))
                    if operator:
                        runs += _alone(planes, count, rounds, say)
    provenance = {"created": now(), "versions": versions(), "machine": machine(torch.device("cpu"))}
    return Bench(name, runs, missing, fused, nodes, provenance)


def relu_variant(network: nn.Module) -> nn.Module:
    """Return a copy of the network that has nn.ReLU where it has Sparta."""
    twin = copy.deepcopy(network)
    sites = list(twin.named_modules(remove_duplicate=False))  # one gate may serve several
    for name, module in sites:
        if isinstance(module, Sparta):
            twin.set_submodule(name, nn.ReLU())
    return twin


def sparta_planes(network: nn.Module, pixels: Pixels) -> list[tuple[Shape, int]]:
    """Return the shape of x and the kernel size of every call of Sparta in one forward pass."""
    shapes: list[tuple[Shape, int]] = []

    def note(module: Sparta, inputs: tuple[Any, ...]) -> None:
        n, c, h, w = inputs[0].shape
        shapes.append(((n, c, h, w), module.kernel_size))

    hooks = [m.register_forward_pre_hook(note) for m in network.modules() if isinstance(m, Sparta)]
    try:
        with torch.inference_mode():
            network(torch.from_numpy(pixels))
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _alone(planes: list[tuple[Shape, int]], threads: int, rounds: int, say: Say) -> list[Run]:
    """Measure Sparta on each of a network's planes."""
    if ort_library() is None:
        say(f"Sparta alone is not measured: {why_no_library()}")
        return []
    runs = []
    for kernel in sorted({kernel for _, kernel in planes}):
        shapes = list(dict.fromkeys(shape for shape, k in planes if k == kernel))
        runs += bench_operator(shapes, threads=threads, kernel=kernel, rounds=rounds, say=say)
    return runs


def _contestants(
    network: nn.Module, file: Path, twin: Path, pixels: Pixels, threads: int, against: Sequence[str]
) -> tuple[dict[str, Call], dict[str, str]]:
    """Return what runs, by title, and what this machine does not have."""
    settings: dict[str, Any] = {"batch_size": len(pixels), "threads": threads}
    found: dict[str, Call] = {}
    missing: dict[str, str] = {}
    makers: dict[str, Callable[[], Any]] = {
        FUSED: lambda: OnnxRuntimeClassifier(file, **settings),
        "relu": lambda: OnnxRuntimeClassifier(twin, **settings),
        "body": lambda: OnnxRuntimeClassifier(file, kernel=False, **settings),
        "eager": lambda: _module(network),
        "compile": lambda: _compiled(network, pixels),
        "openvino": lambda: open_file(file, "openvino", **settings),
        "openvino-relu": lambda: open_file(twin, "openvino", **settings),
    }
    for peer in against:
        try:
            found[TITLES[peer]] = _call(makers[peer](), pixels)
        except (RobustExportError, RuntimeError) as error:
            missing[TITLES[peer]] = reason(error)
    return found, missing


def _call(classifier: Callable[[Pixels], object], pixels: Pixels) -> Call:
    return lambda: classifier(pixels)


def _module(network: nn.Module) -> Callable[[Pixels], object]:
    def run(pixels: Pixels) -> object:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels)).numpy()

    return run


def _compiled(network: nn.Module, pixels: Pixels) -> Callable[[Pixels], object]:
    torch.compiler.reset()
    run = _module(torch.compile(network, dynamic=False))  # type: ignore[arg-type]
    run(pixels)
    return run


def _check(batches: Sequence[int], threads: Sequence[int], against: Sequence[str], rounds: int) -> None:
    for what, values in (("batch", batches), ("threads", threads), ("rounds", [rounds])):
        if not values or min(values) < 1:
            raise InvalidValue(f"{what} is {', '.join(map(str, values)) or 'empty'}; expected 1 or more")
    for peer in against:
        if peer not in PEERS:
            raise unknown("peer", peer, PEERS)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
