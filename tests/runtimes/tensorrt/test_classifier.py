"""TensorRTClassifier with test doubles of TensorRT and CUDA, and on a GPU against PyTorch."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, BundleError
from robust_export.runtimes.registry import open_file
from robust_export.runtimes.tensorrt import classifier as tensorrt
from robust_export.runtimes.tensorrt import cuda as cuda_module
from robust_export.runtimes.tensorrt.classifier import MAX_PREPARED, NoGPU, TensorRTClassifier
from robust_export.runtimes.tensorrt.variants import Variant
from tests.runtimes.gpu_double import Cuda, Engine
from tests.runtimes.gpu_double import tensorrt as stand_in

FACTS: dict[str, Any] = {
    "precision": "fp32", "flavor": "tensorrt", "tensorrt": "11.1.0", "plugin": "none",
    "plugin_library": None, "sparta_nodes": 3, "plugin_layers": 0, "compute_capability": "8.9",
    "options": {"version_compatible": False, "hardware_compatible": None},
}  # fmt: skip


class Log:
    def take(self) -> str:
        return "TensorRT's error"


@dataclass
class Machine:
    """A bundle with an engine, and a machine with a GPU for it."""

    bundle: Bundle
    cuda: Cuda
    engine: Engine

    @property
    def path(self) -> Path:
        return self.bundle.file("model.sm89.engine")

    def open(self, **settings: Any) -> TensorRTClassifier:
        return TensorRTClassifier(self.path, cuda=cuda_module.CudaStream(self.cuda), **settings)

    def pixels(self, count: int) -> Any:
        return np.random.default_rng(count).random((count, *self.engine.model.input_shape), dtype=np.float32)


@pytest.fixture
def machine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Machine:
    cuda = Cuda()
    engine = Engine(cuda, bundle.file("model.onnx"), (2, 5))
    variant = Variant("tensorrt", stand_in(engine), Log())
    monkeypatch.setattr(tensorrt, "load_variant", lambda name: variant)
    monkeypatch.setattr(tensorrt, "gpu_capability", lambda: (8, 9))
    bundle.write({"model.sm89.engine": b"a plan"}, "engine", **FACTS)
    return Machine(bundle, cuda, engine)


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "plain"])
def test_batch_sizes(machine: Machine, graphs: bool) -> None:
    classifier = machine.open(graphs=graphs)
    for count in (3, 1, 2, 5, 6, 13, 3, 1, 5, 0):  # the profile has batches of 2 to 5
        pixels = machine.pixels(count)
        expected = machine.engine.model(pixels) if count else np.empty((0, classifier.classes))
        np.testing.assert_allclose(classifier(pixels), expected, atol=1e-5)
    assert machine.engine.contexts == 3  # for 2, 3 and 5: 1 is padded, 6 and 13 are split
    assert (machine.cuda.launches > 0) == graphs


def test_metadata_is_read(machine: Machine) -> None:
    classifier = machine.open()
    assert (classifier.runtime, classifier.precision, classifier.sparta_nodes) == ("tensorrt", "fp32", 3)
    assert classifier.labels == machine.bundle.labels
    assert (classifier.input_shape, classifier.classes) == (
        machine.engine.model.input_shape,
        len(machine.bundle.labels),
    )
    assert classifier.fused_nodes() == machine.engine.model.sparta_nodes
    classifier(machine.pixels(4))
    classifier.compute(4)
    assert not machine.cuda.queue


def test_logits_are_copies(machine: Machine) -> None:
    classifier = machine.open()
    first = classifier(machine.pixels(3))
    kept = first.copy()
    classifier(machine.pixels(4))
    np.testing.assert_array_equal(first, kept)


def test_oldest_graphs_are_destroyed(machine: Machine) -> None:
    machine.engine.batches = (1, 2 * MAX_PREPARED)
    classifier = machine.open()
    for count in range(1, 2 * MAX_PREPARED + 1):
        pixels = machine.pixels(count)
        np.testing.assert_allclose(classifier(pixels), machine.engine.model(pixels), atol=1e-5)
    assert len(machine.cuda.graphs) == MAX_PREPARED


def test_failed_capture_runs_without_graph(machine: Machine) -> None:
    machine.cuda.capture_fails = True
    classifier = machine.open()
    for _ in range(3):
        pixels = machine.pixels(3)
        np.testing.assert_allclose(classifier(pixels), machine.engine.model(pixels), atol=1e-5)
    assert machine.cuda.launches == 0


def test_memory_is_freed(machine: Machine) -> None:
    classifier = machine.open()
    classifier(machine.pixels(3))
    assert len(machine.cuda.memory) == 4
    del classifier
    gc.collect()
    assert not machine.cuda.memory


def test_threads_get_their_own_logits(machine: Machine) -> None:
    classifier = machine.open()
    wrong: list[int] = []

    def ask(count: int) -> None:
        pixels = machine.pixels(count)
        expected = machine.engine.model(pixels)
        for _ in range(5):
            if not np.allclose(classifier(pixels), expected, atol=1e-5):
                wrong.append(count)

    threads = [threading.Thread(target=ask, args=(count,)) for count in (2, 3, 4, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_wrong_image_size_raises(machine: Machine) -> None:
    with pytest.raises(ArtifactError, match=r"takes images \[\d+, \d+, \d+\]; got \[1, 3, 4\]"):
        machine.open()(np.zeros((2, 1, 3, 4), np.float32))


@pytest.mark.parametrize(
    "call", ["cudaStreamCreateWithFlags", "cudaMalloc", "cudaMallocHost", "cudaMemcpyAsync",
             "cudaStreamSynchronize", "cudaStreamBeginCapture", "cudaGraphInstantiate", "cudaGraphLaunch"],
)  # fmt: skip
def test_cuda_errors_raise(machine: Machine, call: str) -> None:
    def run() -> None:
        classifier = machine.open()
        for _ in range(2):
            classifier(machine.pixels(3))

    run()
    machine.cuda.fails = call
    with pytest.raises(ArtifactError, match=f"CUDA's {call} failed: out of memory"):
        run()


def test_failed_run_raises(machine: Machine) -> None:
    machine.engine.fails = True
    with pytest.raises(ArtifactError, match=r"cannot run .* on 3 images: TensorRT's error"):
        machine.open()(machine.pixels(3))


def other_version(machine: Machine, facts: dict[str, Any]) -> None:
    facts["tensorrt"] = "10.9.0"


def invalid_plan(machine: Machine, facts: dict[str, Any]) -> None:
    facts["content"] = b"another plan"


def wrong_dtype(machine: Machine, facts: dict[str, Any]) -> None:
    machine.engine.dtypes["pixels"] = "HALF"


def other_gpu(machine: Machine, facts: dict[str, Any]) -> None:
    facts["compute_capability"] = "12.0"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            other_version,
            ArtifactError,
            r"built by version 10\.9\.0, but TensorRT 11\.1\.0 is installed; build it again",
        ),
        (
            invalid_plan,
            ArtifactError,
            r"TensorRT 11\.1\.0 cannot read .*: TensorRT's error.* Build it on this machine",
        ),
        (wrong_dtype, ArtifactError, "is not an image classifier"),
        (other_gpu, NoGPU, r"needs a GPU of compute capability 12\.0, and this machine's has 8\.9"),
    ],
)
def test_unusable_engine_raises(
    machine: Machine, change: Callable[..., None], error: type[Exception], message: str
) -> None:
    facts = dict(FACTS)
    change(machine, facts)
    content = facts.pop("content", b"a plan")
    machine.bundle.write({"model.sm89.engine": content}, "engine", **facts)
    with pytest.raises(error, match=message):
        machine.open()


def test_compatible_engine_runs(machine: Machine) -> None:
    options = {"version_compatible": True, "hardware_compatible": "ampere_plus"}
    facts = FACTS | {"options": options, "tensorrt": "10.9.0", "compute_capability": "8.6"}
    machine.bundle.write({"model.sm89.engine": b"a plan"}, "engine", **facts)
    assert machine.open()(machine.pixels(2)).shape == (2, len(machine.bundle.labels))


def test_no_gpu_raises(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpu_capability", lambda: None)
    with pytest.raises(NoGPU, match=r"needs a GPU of compute capability 8\.9, and CUDA finds no GPU"):
        open_file(machine.path, "tensorrt")


def test_plugin_library_is_loaded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.bundle.write({"model.sm89.engine": b"a plan"}, "engine", **FACTS | {"plugin": "library"})
    loaded: list[Path] = []
    monkeypatch.setattr(tensorrt, "trt_library", lambda: Path("libsparta_trt.so"))
    monkeypatch.setattr(tensorrt, "load_plugins", lambda variant, path: loaded.append(path))
    assert machine.open().kernel_file == loaded[0] == Path("libsparta_trt.so")
    monkeypatch.setattr(tensorrt, "trt_library", lambda: None)
    with pytest.raises(ArtifactError, match="needs the plugin library: "):
        machine.open()


def test_non_engine_raises(machine: Machine, tmp_path: Path) -> None:
    lost = tmp_path / "lost.engine"
    lost.write_bytes(b"a plan")
    with pytest.raises(ArtifactError, match=r"is in no bundle: expected a manifest\.json"):
        TensorRTClassifier(lost)
    with pytest.raises(ArtifactError, match="is not an engine"):
        TensorRTClassifier(machine.bundle.file("model.onnx"))
    machine.path.write_bytes(b"a plan that was altered")
    with pytest.raises(BundleError, match=r"model\.sm89\.engine"):
        machine.open()


@pytest.mark.gpu
@pytest.mark.parametrize("plugin", ["library", "aot", "none"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_on_a_gpu(bundle: Bundle, plugin: str, precision: str) -> None:
    from robust_export.export.bundle_onnx import export_bundle
    from robust_export.export.tensorrt.bundle_engines import export_engines
    from robust_export.nn.load import load

    export_bundle(bundle, precision=precision)
    [path] = export_engines(bundle, precision=precision, plugin=plugin)
    classifier = TensorRTClassifier(path)
    for count in (1, 32, 33, 300):
        pixels = np.random.default_rng(count).random((count, *classifier.input_shape), dtype=np.float32)
        expected = load(bundle)(torch.from_numpy(pixels)).detach().numpy()
        bound = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 0.15}[precision] * np.abs(expected).max()
        np.testing.assert_allclose(classifier(pixels), expected, atol=bound)
    assert classifier.fused_nodes() == (0 if plugin == "none" else classifier.sparta_nodes)
