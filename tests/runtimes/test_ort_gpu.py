"""ONNX Runtime on a GPU: what a session is given, and that it never falls back to the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from robust_export import kernels
from robust_export.errors import ArtifactError
from robust_export.runtimes import onnxruntime as runtime
from robust_export.runtimes import ort_gpu as providers
from robust_export.runtimes.onnx_model import sparta_nodes
from robust_export.runtimes.ort_gpu import PROVIDERS, rewrite_for_provider
from robust_export.runtimes.registry import open_file
from robust_export.runtimes.tensorrt.gpu_info import gpu_capability


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose CUDA reports a GPU."""
    monkeypatch.setattr(providers, "gpu_capability", lambda: (8, 9))


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(providers, "trt_library", lambda: Path("/a/libsparta_trt.so"))
    return "/a/libsparta_trt.so"


@pytest.mark.skipif(gpu_capability() is not None, reason="this machine has a GPU")
@pytest.mark.parametrize("name", PROVIDERS)
def test_no_fallback_without_gpu(trained: Path, plugin: str, name: str) -> None:
    with pytest.raises(ArtifactError, match=f"{PROVIDERS[name].name} cannot be used: CUDA finds no GPU"):
        open_file(trained / "model.onnx", name)


class Session:
    """Replacement of ort.InferenceSession that chooses the providers `uses`."""

    uses: tuple[str, ...] = ()
    given: dict[str, Any]

    def __init__(self, content: bytes, options: Any, providers: Any = None, *, enable_fallback: bool) -> None:
        assert not enable_fallback
        Session.given = {"content": content, "options": options, "providers": providers}

    def get_providers(self) -> list[str]:
        return [*self.uses, "CPUExecutionProvider"]


@pytest.mark.skipif(gpu_capability() is not None, reason="this machine has a GPU")
@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize("name", PROVIDERS)
def test_no_fallback_if_gpu_fails(
    trained: Path, plugin: str, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(ArtifactError):  # ONNX Runtime's refusal, or ours
        open_file(trained / "model.onnx", name)
    assert "Falling back" not in capfd.readouterr().out


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_session_settings(trained: Path, plugin: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    provider = PROVIDERS[name]
    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [provider.name, "CPUExecutionProvider"])
    monkeypatch.setattr(Session, "uses", (provider.name,))
    options = ort.SessionOptions()
    providers.create_session(b"model", options, provider, file="model.onnx")
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    own = {"trt_extra_plugin_lib_paths": plugin} if provider.plugin else {}
    assert Session.given["providers"] == [(provider.name, own)]
    monkeypatch.setattr(Session, "uses", ())
    with pytest.raises(ArtifactError, match=r"ONNX Runtime chose CPUExecutionProvider for model\.onnx"):
        providers.create_session(b"model", ort.SessionOptions(), provider, file="model.onnx")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ArtifactError, match=r"ONNX Runtime has CPUExecutionProvider\. .*pip install"):
        providers.create_session(b"model", ort.SessionOptions(), provider, file="model.onnx")


@pytest.mark.usefixtures("with_gpu")
def test_rtx_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "NvTensorRTRTXExecutionProvider"
    registered: list[tuple[str, str]] = []
    device = SimpleNamespace(ep_name=name)
    options = SimpleNamespace(
        add_session_config_entry=lambda *given: None,
        add_provider_for_devices=lambda devices, settings: registered.append(("devices", str(devices))),
    )
    package = SimpleNamespace(get_ep_name=lambda: name, get_library_path=lambda: "lib.so")
    monkeypatch.setitem(sys.modules, providers.RTX_PACKAGE, package)
    monkeypatch.setattr(ort, "get_ep_devices", lambda: [device] if registered else [])
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda *given: registered.append(given))
    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(Session, "uses", (name,))
    for _ in range(2):
        providers.create_session(b"model", options, PROVIDERS["onnxruntime-rtx"], file="model.onnx")
    assert [entry[0] for entry in registered] == [name, "devices", "devices"]


@pytest.mark.usefixtures("with_gpu")
def test_rtx_without_gpu_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(get_ep_name=lambda: "Nv", get_library_path=lambda: "lib.so")
    monkeypatch.setitem(sys.modules, providers.RTX_PACKAGE, package)
    monkeypatch.setattr(ort, "get_ep_devices", list)
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda *given: None)
    with pytest.raises(ArtifactError, match=r"it sees no RTX GPU\. There is no fallback"):
        providers.create_session(
            b"model", ort.SessionOptions(), PROVIDERS["onnxruntime-rtx"], file="model.onnx"
        )


def test_nodes_move_to_tensorrt_domain(trained: Path, plugin: str) -> None:
    model = onnx.load(trained / "model.onnx")
    before = model.SerializeToString(deterministic=True)
    given = rewrite_for_provider(model, PROVIDERS["onnxruntime-tensorrt"])
    assert model.SerializeToString(deterministic=True) == before
    assert not given.functions
    nodes = [node for node in given.graph.node if node.domain == "trt.plugins"]
    assert [node.op_type for node in nodes] == ["Sparta"] * len(sparta_nodes(model))
    assert {(o.domain, o.version) for o in given.opset_import} >= {("trt.plugins", 1)}
    assert rewrite_for_provider(model, PROVIDERS["onnxruntime-cuda"]) is model


def test_missing_plugin_raises(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "trt_library", lambda: None)
    with pytest.raises(ArtifactError, match=kernels.why_no_trt_library().split(":")[0]):
        open_file(trained / "model.onnx", "onnxruntime-tensorrt")


@pytest.mark.parametrize(
    ("name", "has_cuda", "message"),
    [
        ("onnxruntime-cuda", True, ""),
        ("onnxruntime-cuda", False, "the library was built without CUDA, for CUDAExecutionProvider"),
        ("onnxruntime-tensorrt", True, "there is none for ONNX Runtime's TensorrtExecutionProvider"),
        ("onnxruntime", False, ""),
    ],
)
def test_why_no_gpu_kernel(monkeypatch: pytest.MonkeyPatch, name: str, has_cuda: bool, message: str) -> None:
    monkeypatch.setattr(runtime, "ort_has_cuda", lambda: has_cuda)
    reason = runtime._unsupported_provider(PROVIDERS.get(name))
    assert message in reason
    assert bool(message) == bool(reason)


@pytest.mark.gpu
@pytest.mark.parametrize("name", PROVIDERS)
def test_on_a_gpu(trained: Path, name: str) -> None:
    try:
        classifier = open_file(trained / "model.onnx", name)
    except ArtifactError as error:
        pytest.skip(str(error))
    pixels = np.random.default_rng(0).random((4, *classifier.input_shape), dtype=np.float32)
    expected = open_file(trained / "model.onnx", kernel=False)(pixels)
    np.testing.assert_allclose(classifier(pixels), expected, atol=1e-3 * np.abs(expected).max())
