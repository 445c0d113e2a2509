"""Triton model repositories, parsed with Triton's own ModelConfig message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

from robust_export.bundle import Bundle
from robust_export.errors import BundleError, InvalidValue, RobustExportError
from robust_export.serving.triton.artifact_choice import choose_artifact
from robust_export.serving.triton.model_config import config_text
from robust_export.serving.triton.repository import RepositoryModel, write_repository
from robust_export.serving.triton.settings import TritonSettings
from tests.serving.bundles import LABELS, SHAPE, expected, images
from tests.serving.triton.bundles import ENGINE, LIBRARY_SHA, with_engines
from tests.serving.triton.triton_message import message_type, read


def write(
    bundle: Bundle, runtime: Any = "tensorrt", out: Path | None = None, **settings: Any
) -> RepositoryModel:
    return write_repository(bundle, choose_artifact(bundle, runtime), TritonSettings(**settings), out)


def config(written: RepositoryModel) -> Any:
    return read((written.folder / "config.pbtxt").read_text())


def test_config_of_an_engine(tmp_path: Path) -> None:
    bundle = with_engines(tmp_path / "net", sm89={})
    written = write(bundle, instances=2, gpus=(0, 1))
    assert written.folder == bundle.path / "triton" / "net"
    parsed = config(written)
    names = type(parsed).DESCRIPTOR.file.pool.FindEnumTypeByName("inference.DataType").values_by_name
    assert (parsed.name, parsed.platform, parsed.backend) == ("net", "tensorrt_plan", "")
    assert (written.folder / "1" / parsed.default_model_filename).read_bytes() == ENGINE + bytes([0])
    assert parsed.default_model_filename == "model.plan"
    assert parsed.max_batch_size == 64
    [pixels], [logits] = parsed.input, parsed.output
    fp32 = names["TYPE_FP32"].number
    assert (pixels.name, pixels.data_type, list(pixels.dims)) == ("pixels", fp32, list(SHAPE))
    assert (logits.name, logits.data_type, list(logits.dims)) == ("logits", fp32, [5])
    assert (written.folder / logits.label_filename).read_text().splitlines() == LABELS
    [group] = parsed.instance_group
    assert (group.count, group.kind, list(group.gpus)) == (2, group.KIND_GPU, [0, 1])
    batching = parsed.dynamic_batching
    assert list(batching.preferred_batch_size) == [16, 64]
    assert batching.max_queue_delay_microseconds == 2000
    policy = batching.default_queue_policy
    assert (policy.max_queue_size, policy.timeout_action) == (128, policy.REJECT)
    assert policy.default_timeout_microseconds == 30_000_000
    assert parsed.version_policy.latest.num_versions == 1
    assert [sample.batch_size for sample in parsed.model_warmup] == [1, 16, 64]
    for sample in parsed.model_warmup:
        [(name, tensor)] = sample.inputs.items()
        assert (name, tensor.data_type, list(tensor.dims)) == ("pixels", fp32, list(SHAPE))
        assert tensor.zero_data
    assert not parsed.HasField("model_operations")
    parameters = {key: value.string_value for key, value in parsed.parameters.items()}
    assert parameters == {f"robust_export.{key}": text for key, text in {
        "file": "model.sm89.engine", "sha256": bundle.manifest["files"]["model.sm89.engine"]["sha256"],
        "bundle_sha256": bundle.manifest["sha256"], "model": "linear", "precision": "fp32",
        "threat": "Linf 0.1", "verdict": "none", "tensorrt": "10.13.3.9", "compute_capability": "8.9",
        "plugin": "library", "plugin_library": LIBRARY_SHA,
    }.items()}  # fmt: skip


def test_config_of_an_onnx_file(tmp_path: Path) -> None:
    written = write(with_engines(tmp_path / "net"), "onnx", op_library="/plugins/libsparta_ort.so")
    parsed = config(written)
    assert (parsed.platform, parsed.backend, parsed.default_model_filename) == (
        "",
        "onnxruntime",
        "model.onnx",
    )
    assert list(parsed.model_operations.op_library_filename) == ["/plugins/libsparta_ort.so"]
    assert [group.kind for group in parsed.instance_group] == [parsed.instance_group[0].KIND_CPU]
    assert parsed.max_batch_size == 32
    assert [sample.batch_size for sample in parsed.model_warmup] == [1, 8, 32]
    session = onnxruntime.InferenceSession(written.folder / "1" / "model.onnx")
    pixels = images(3)
    [logits] = session.run([parsed.output[0].name], {parsed.input[0].name: pixels})
    np.testing.assert_allclose(logits, expected(pixels), rtol=1e-5, atol=1e-4)
    assert not config(write(with_engines(tmp_path / "two"), "onnx")).HasField("model_operations")


def test_settings_are_in_the_config(tmp_path: Path) -> None:
    bundle = with_engines(tmp_path / "net", sm89={})
    parsed = config(write(bundle, max_batch=24, preferred=(8, 4), max_delay=0.5, queue=0, timeout=1.5))
    assert parsed.max_batch_size == 24
    assert list(parsed.dynamic_batching.preferred_batch_size) == [4, 8]
    assert parsed.dynamic_batching.max_queue_delay_microseconds == 500
    assert parsed.dynamic_batching.default_queue_policy.max_queue_size == 0
    assert parsed.dynamic_batching.default_queue_policy.default_timeout_microseconds == 1_500_000
    assert [sample.batch_size for sample in parsed.model_warmup] == [1, 4, 8]
    assert list(config(write(bundle, max_batch=8)).dynamic_batching.preferred_batch_size) == [8]
    on_gpu = config(write(bundle, "onnx", device="gpu", max_batch=1))
    assert on_gpu.instance_group[0].kind == on_gpu.instance_group[0].KIND_GPU
    assert list(on_gpu.dynamic_batching.preferred_batch_size) == [1]


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({}, ["--backend-config=tensorrt,plugins=/p/sparta.so"],
         [LIBRARY_SHA, "LD_PRELOAD", "10.13.3.9 and"]),
        ({"plugin": "aot", "plugin_library": None}, [], ["No plugin"]),
        ({"plugin": "none", "plugin_library": None}, [], ["No plugin"]),
        ({"plugin_library": None, "options": {"version_compatible": True}},
         ["--backend-config=tensorrt,version-compatible=true"], ["10.13.3.9 or later", "8.9."]),
        ({"options": {"hardware_compatible": "ampere_plus"}},
         ["--backend-config=tensorrt,plugins=/p/sparta.so"], ["8.9 (hardware-compatible: ampere_plus)"]),
    ],
)  # fmt: skip
def test_command_and_readme(
    tmp_path: Path, changes: dict[str, Any], flags: list[str], words: list[str]
) -> None:
    written = write(with_engines(tmp_path / "net", sm89=changes), plugin="/p/sparta.so", models="/m")
    assert written.command == [
        "tritonserver", "--model-repository=/m", "--model-control-mode=explicit", "--load-model=net",
        "--disable-auto-complete-config", *flags,
    ]  # fmt: skip
    readme = (written.folder / "README.md").read_text()
    for word in [*written.command, *words]:
        assert word in readme


@pytest.mark.parametrize(
    ("settings", "runtime", "words"),
    [
        ({"max_batch": 65}, "tensorrt", "model.sm89.engine takes at most 64 images"),
        ({"preferred": (8, 65)}, "tensorrt", "--preferred has 65"),
        ({"device": "cpu"}, "tensorrt", "an engine runs on a GPU"),
        ({"op_library": "/x.so"}, "tensorrt", "--runtime onnx"),
        ({"gpus": (0,)}, "onnx", "add --device gpu"),
    ],
)
def test_impossible_setting_is_an_error(
    tmp_path: Path, settings: dict[str, Any], runtime: str, words: str
) -> None:
    bundle = with_engines(tmp_path / "net", sm89={})
    with pytest.raises(InvalidValue, match=words):
        write(bundle, runtime, **settings)
    assert not (bundle.path / "triton").exists()


def test_altered_file_is_not_copied(tmp_path: Path) -> None:
    bundle = with_engines(tmp_path / "net", sm89={})
    bundle.file("model.sm89.engine").write_bytes(ENGINE + b"?")
    with pytest.raises(BundleError, match=r"model\.sm89\.engine was altered"):
        write(bundle)
    assert not list((bundle.path / "triton").iterdir())


def test_model_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, out = with_engines(tmp_path / "net", sm89={}), tmp_path / "repository"
    write(with_engines(tmp_path / "other"), "onnx", out)
    write(bundle, out=out)
    before = (out / "net" / "config.pbtxt").read_text()

    def disk_full(source: Path, *args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", disk_full)
        with pytest.raises(RobustExportError, match=r"No space left.*--out"):
            write(bundle, "onnx", out)
    assert (out / "net" / "config.pbtxt").read_text() == before
    assert (out / "net" / "1" / "model.plan").is_file()
    write(bundle, "onnx", out)
    assert sorted(path.name for path in (out / "net").rglob("*")) == [
        "1", "README.md", "config.pbtxt", "labels.txt", "model.onnx",
    ]  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == ["net", "other"]


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [(["pass"], "pass"), (["pass", "undecided"], "undecided"), (["fail", "undecided"], "fail"), ([], "none")],
)
def test_worst_verdict_of_the_same_digest(tmp_path: Path, verdicts: list[str], worst: str) -> None:
    bundle = with_engines(tmp_path / "net", sm89={})
    digest = bundle.manifest["files"]["model.sm89.engine"]["sha256"]
    artifacts = [{"sha256": digest, "verdict": verdict} for verdict in verdicts]
    report = {"artifacts": [*artifacts, {"sha256": "0" * 64, "verdict": "fail"}]}
    (bundle.path / "verify.json").write_text(json.dumps(report))
    assert config(write(bundle)).parameters["robust_export.verdict"].string_value == worst


@pytest.mark.parametrize("content", ["{", "[]", '{"artifacts": [{}]}'])
def test_damaged_report_is_an_error(tmp_path: Path, content: str) -> None:
    bundle = with_engines(tmp_path / "net")
    (bundle.path / "verify.json").write_text(content)
    with pytest.raises(BundleError, match=r"verify\.json cannot be read"):
        write(bundle, "onnx")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda manifest: manifest["labels"].__setitem__(1, "two\nlines"), "is not one line"),
        (lambda manifest: manifest.update(name="../net"), "cannot be the name of a model"),
        (lambda manifest: manifest.update(name=".net"), "cannot be the name of a model"),
        (lambda manifest: manifest.update(input={}), "describes the model's input as"),
        (lambda manifest: manifest["output"].update(dtype="float16"), "describes the model's output as"),
    ],
)
def test_unsuitable_manifest_is_an_error(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], error: str
) -> None:
    bundle = with_engines(tmp_path / "net")
    change(bundle.manifest)
    with pytest.raises(RobustExportError, match=error):
        write(bundle, "onnx", tmp_path / "out")
    assert not (tmp_path / "net" / "config.pbtxt").exists()


@pytest.mark.parametrize("text", ['"', "\\", "a\nb", "\\n", "\x00\x7f\x011", "naïve 猫", "'", "{ } # ,;"])
def test_text_is_escaped(text: str) -> None:
    content = config_text({"name": text})
    assert content.isascii()
    assert text_format.Parse(content, message_type()()).name == text
