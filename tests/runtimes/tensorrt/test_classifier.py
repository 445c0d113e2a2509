"""An engine as a classifier, against stand-ins for TensorRT and CUDA; with a GPU, against PyTorch."""

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
from robust_export.runtimes.tensorrt.classifier import SHAPES, NoGPU, TensorRTClassifier
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
        return "TensorRT's own words"


@dataclass
class Machine:
    """A bundle with an engine, and a machine with a GPU for it, as far as the stand-ins go."""

    bundle: Bundle
    cuda: Cuda
    engine: Engine

    @property
    def path(self) -> Path:
        return self.bundle.file("model.sm89.engine")

    def open(self, **settings: Any) -> TensorRTClassifier:
        return TensorRTClassifier(self.path, cuda=cuda_module.Cuda(self.cuda), **settings)

    def pixels(self, count: int) -> Any:
        return np.random.default_rng(count).random((count, *self.engine.model.plane), dtype=np.float32)


@pytest.fixture
def machine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Machine:
    cuda = Cuda()
    engine = Engine(cuda, bundle.file("model.onnx"), (2, 5))
    flavor = Variant("tensorrt", stand_in(engine), Log())
    monkeypatch.setattr(tensorrt, "find", lambda name: flavor)
    monkeypatch.setattr(tensorrt, "gpu", lambda: (8, 9))
    bundle.write({"model.sm89.engine": b"a plan"}, "engine", **FACTS)
    return Machine(bundle, cuda, engine)


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "plain"])
def test_batches_of_every_size(machine: Machine, graphs: bool) -> None:
    classifier = machine.open(graphs=graphs)
    for count in (3, 1, 2, 5, 6, 13, 3, 1, 5, 0):  # the profile takes 2 to 5
        pixels = machine.pixels(count)
        expected = machine.engine.model(pixels) if count else np.empty((0, classifier.classes))
        np.testing.assert_allclose(classifier(pixels), expected, atol=1e-5)
    assert machine.engine.contexts == 3  # for 2, 3 and 5; 1 is filled up, 6 and 13 are cut
    assert (machine.cuda.replays > 0) == graphs


def test_what_it_says_of_itself(machine: Machine) -> None:
    classifier = machine.open()
    assert (classifier.runtime, classifier.precision, classifier.sparta_nodes) == ("tensorrt", "fp32", 3)
    assert classifier.labels == machine.bundle.labels
    assert (classifier.plane, classifier.classes) == (machine.engine.model.plane, len(machine.bundle.labels))
    assert classifier.fused_nodes() == machine.engine.model.sparta_nodes
    classifier(machine.pixels(4))
    classifier.compute(4)
    assert not machine.cuda.queue  # it has waited


def test_answers_are_the_callers_own(machine: Machine) -> None:
    classifier = machine.open()
    first = classifier(machine.pixels(3))
    kept = first.copy()
    classifier(machine.pixels(4))
    np.testing.assert_array_equal(first, kept)


def test_graphs_of_old_sizes_are_forgotten(machine: Machine) -> None:
    machine.engine.batches = (1, 2 * SHAPES)
    classifier = machine.open()
    for count in range(1, 2 * SHAPES + 1):
        pixels = machine.pixels(count)
        np.testing.assert_allclose(classifier(pixels), machine.engine.model(pixels), atol=1e-5)
    assert len(machine.cuda.graphs) == SHAPES


def test_an_engine_that_cannot_be_captured_runs_without(machine: Machine) -> None:
    machine.cuda.spoilt = True
    classifier = machine.open()
    for _ in range(3):
        pixels = machine.pixels(3)
        np.testing.assert_allclose(classifier(pixels), machine.engine.model(pixels), atol=1e-5)
    assert machine.cuda.replays == 0


def test_all_memory_is_given_back(machine: Machine) -> None:
    classifier = machine.open()
    classifier(machine.pixels(3))
    assert len(machine.cuda.memory) == 4
    del classifier
    gc.collect()
    assert not machine.cuda.memory


def test_threads_get_their_own_answers(machine: Machine) -> None:
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


def test_other_images_are_refused(machine: Machine) -> None:
    with pytest.raises(ArtifactError, match=r"takes images \[\d+, \d+, \d+\]; got \[1, 3, 4\]"):
        machine.open()(np.zeros((2, 1, 3, 4), np.float32))


@pytest.mark.parametrize(
    "call", ["cudaStreamCreateWithFlags", "cudaMalloc", "cudaMallocHost", "cudaMemcpyAsync",
             "cudaStreamSynchronize", "cudaStreamBeginCapture", "cudaGraphInstantiate", "cudaGraphLaunch"],
)  # fmt: skip
def test_what_cuda_refuses_is_an_error(machine: Machine, call: str) -> None:
    def run() -> None:
        classifier = machine.open()
        for _ in range(2):
            classifier(machine.pixels(3))

    run()
    machine.cuda.fails = call
    with pytest.raises(ArtifactError, match=f"CUDA's {call} failed: out of memory"):
        run()


def test_what_tensorrt_refuses_is_an_error(machine: Machine) -> None:
    machine.engine.fails = True
    with pytest.raises(ArtifactError, match=r"cannot run .* on 3 images: TensorRT's own words"):
        machine.open()(machine.pixels(3))


def other_version(machine: Machine, facts: dict[str, Any]) -> None:
    facts["tensorrt"] = "10.9.0"


def no_plan(machine: Machine, facts: dict[str, Any]) -> None:
    facts["content"] = b"another plan"


def odd_types(machine: Machine, facts: dict[str, Any]) -> None:
    machine.engine.dtypes["pixels"] = "HALF"


def other_gpu(machine: Machine, facts: dict[str, Any]) -> None:
    facts["compute_capability"] = "12.0"


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            other_version,
            ArtifactError,
            r"built by version 10\.9\.0; this is TensorRT 11\.1\.0: build it again",
        ),
        (no_plan, ArtifactError, r"TensorRT 11\.1\.0 cannot read .*: TensorRT's own words.* build it here"),
        (odd_types, ArtifactError, "is no classifier of images"),
        (other_gpu, NoGPU, r"for GPUs of compute capability 12\.0, and this machine's has 8\.9"),
    ],
)
def test_an_engine_that_does_not_fit(
    machine: Machine, spoil: Callable[..., None], error: type[Exception], message: str
) -> None:
    facts = dict(FACTS)
    spoil(machine, facts)
    content = facts.pop("content", b"a plan")
    machine.bundle.write({"model.sm89.engine": content}, "engine", **facts)
    with pytest.raises(error, match=message):
        machine.open()


def test_compatible_engines_run_elsewhere(machine: Machine) -> None:
    options = {"version_compatible": True, "hardware_compatible": "ampere_plus"}
    facts = FACTS | {"options": options, "tensorrt": "10.9.0", "compute_capability": "8.6"}
    machine.bundle.write({"model.sm89.engine": b"a plan"}, "engine", **facts)
    assert machine.open()(machine.pixels(2)).shape == (2, len(machine.bundle.labels))


def test_a_machine_without_a_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpu", lambda: None)
    with pytest.raises(NoGPU, match=r"for GPUs of compute capability 8\.9, and CUDA sees none here"):
        open_file(machine.path, "tensorrt")


def test_the_plugin_library_is_loaded_or_missed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.bundle.write({"model.sm89.engine": b"a plan"}, "engine", **FACTS | {"plugin": "library"})
    loaded: list[Path] = []
    monkeypatch.setattr(tensorrt, "trt_library", lambda: Path("libsparta_trt.so"))
    monkeypatch.setattr(tensorrt, "load_plugins", lambda flavor, path: loaded.append(path))
    assert machine.open().kernel_file == loaded[0] == Path("libsparta_trt.so")
    monkeypatch.setattr(tensorrt, "trt_library", lambda: None)
    with pytest.raises(ArtifactError, match="runs Sparta by the plugin library: "):
        machine.open()


def test_files_that_are_no_engines_of_a_bundle(machine: Machine, tmp_path: Path) -> None:
    lost = tmp_path / "lost.engine"
    lost.write_bytes(b"a plan")
    with pytest.raises(ArtifactError, match=r"is in no bundle, whose manifest\.json"):
        TensorRTClassifier(lost)
    with pytest.raises(ArtifactError, match="is no engine"):
        TensorRTClassifier(machine.bundle.file("model.onnx"))
    machine.path.write_bytes(b"a plan that was altered")
    with pytest.raises(BundleError, match=r"model\.sm89\.engine"):
        machine.open()


@pytest.mark.gpu
@pytest.mark.parametrize("plugin", ["library", "aot", "none"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_on_a_gpu(bundle: Bundle, plugin: str, precision: str) -> None:
    from robust_export.export.bundle_onnx import export_bundle
    from robust_export.export.tensorrt.bundle_engines import export_engine
    from robust_export.nn.models import load

    export_bundle(bundle, precision=precision)
    [path] = export_engine(bundle, precision=precision, plugin=plugin)
    classifier = TensorRTClassifier(path)
    plane = classifier.plane
    for count in (1, 32, 33, 300):
        pixels = np.random.default_rng(count).random((count, *plane), dtype=np.float32)
        expected = load(bundle)(torch.from_numpy(pixels)).detach().numpy()
        bound = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 0.15}[precision] * np.abs(expected).max()
        np.testing.assert_allclose(classifier(pixels), expected, atol=bound)
    assert classifier.fused_nodes() == (0 if plugin == "none" else classifier.sparta_nodes)
