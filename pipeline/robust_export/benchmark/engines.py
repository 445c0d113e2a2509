"""Engines of TensorRT on the GPU that is there: the plugin against what one would run instead.

Times are of the network alone: pixels and logits stay in the GPU's memory. Written without a GPU: the choice
of contestants is tested with stand-ins, no figure was ever measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from robust_export.benchmark.end_to_end import relu_variant
from robust_export.benchmark.results import Bench, Run
from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, InvalidValue, RobustExportError, reason, unknown
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
"""What is measured, by the name that --against takes."""

PLUGINS = {"plugin": "library", "aot": "aot", "body": "none", "relu": "none"}
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}

Say = Callable[[str], None]


def bench_engines(
    bundle: str | Path | Bundle, *, precision: str = "fp32", batches: Sequence[int] = (1, 32),
    against: Sequence[str] = tuple(PEERS), rounds: int = 10, say: Say = lambda line: None,
) -> Bench:  # fmt: skip
    """Build engines of a bundle's network, each for one size of batch, and measure them in turns.

    The bundle is only read: engines are built in a folder that is removed.

    Raises:
        ArtifactError: if there is no GPU.
        InvalidValue: for a batch or a number of rounds below 1, or if nothing can be measured.
        UnknownName: for a peer that is none, or another precision than fp32, fp16 and bf16.
    """
    for what, values in (("batch", batches), ("rounds", [rounds])):
        if not values or min(values) < 1:
            raise InvalidValue(f"{what} is {', '.join(map(str, values)) or 'empty'}; expected 1 or more")
    for peer in against:
        if peer not in PEERS:
            raise unknown("peer", peer, PEERS)
    if precision not in ("fp32", *HALVES):
        raise unknown("precision", precision, ("fp32", *HALVES))
    if gpu_capability() is None:
        raise ArtifactError("engines are measured on a GPU, and CUDA sees none here")
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    network, spec = load(opened), opened.recipe().model
    shape = (spec.in_chans, spec.image_size, spec.image_size)
    runs, missing, fused, nodes = [], {}, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        files = _files(network, shape, precision, Path(folder), twin="relu" in against)
        for batch in batches:
            say(f"batch {batch}")
            pixels = np.random.default_rng(0).random((batch, *shape), dtype=np.float32)
            calls: dict[str, Call] = {}
            for peer in against:
                try:
                    if peer == "compile":
                        calls[PEERS[peer]] = _compiled(network, pixels, precision)
                        continue
                    engine = _engine(files[peer == "relu"], PLUGINS[peer], precision, pixels)
                except (RobustExportError, RuntimeError) as error:
                    missing[PEERS[peer]] = reason(error)
                    continue
                calls[PEERS[peer]] = _call(engine, batch)
                if peer == "plugin":
                    fused, nodes = engine.fused_nodes(), engine.sparta_nodes
            if not calls:
                reasons = "\n  ".join(f"{name}: {why}" for name, why in missing.items())
                raise InvalidValue(f"there is nothing to measure:\n  {reasons}")
            reference = PEERS["relu"] if PEERS["relu"] in calls else next(iter(calls))
            title = f"{opened.name} in {precision}: batch {batch}, {shape[1]}x{shape[2]}"
            facts = {"batch": batch, "image_size": shape[1], "precision": precision}
            runs.append(Run(title, 1, reference, measure(calls, rounds=rounds), facts))
    provenance = {"created": now(), "versions": versions(), "machine": machine(torch.device("cuda"))}
    return Bench(opened.name, runs, missing, fused, nodes, provenance)


def _files(
    network: nn.Module, shape: tuple[int, int, int], precision: str, folder: Path, *, twin: bool
) -> dict[bool, Path]:
    """Write the network, and its ReLU twin, as ONNX files; the key says whether it is the twin."""
    modules = {False: network} | ({True: relu_variant(network)} if twin else {})
    files = {}
    for is_twin, module in modules.items():
        opset = BF16_OPSET if precision == "bf16" else DEFAULT_OPSET
        model = to_onnx(module, shape[1], shape[0], opset=opset)
        if precision in HALVES:
            model = cast_model(model, precision)
        files[is_twin] = folder / f"{'relu' if is_twin else 'sparta'}.onnx"
        files[is_twin].write_bytes(model.SerializeToString())
    return files


def _engine(file: Path, plugin: str, precision: str, pixels: Pixels) -> TensorRTClassifier:
    """Return an engine that was built for this batch, and has run on it once."""
    batch = len(pixels)
    options = Options(Batch(batch, batch, batch))
    parsed = parse_network(read_graph(file, plugin), precision, load_variant())
    engine = next(build_engines(parsed, (), options))
    plan = file.with_suffix(".engine")
    plan.write_bytes(engine.plan)
    classifier = TensorRTClassifier(plan, facts=engine_facts(parsed, engine, options))
    classifier(pixels)
    return classifier


def _call(engine: TensorRTClassifier, batch: int) -> Call:
    return lambda: engine.compute(batch)


def _compiled(network: nn.Module, pixels: Pixels, precision: str) -> Call:
    torch.compiler.reset()
    device = torch.device("cuda")
    compiled = torch.compile(network.to(device), dynamic=False)
    given = torch.from_numpy(pixels).to(device)

    def run() -> None:
        dtype = HALVES.get(precision)
        with torch.inference_mode(), torch.autocast("cuda", dtype, enabled=dtype is not None):
            compiled(given)
        torch.cuda.synchronize()

    run()
    return run
