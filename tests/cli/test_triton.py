"""robust-export triton: the chosen file, the printed command, refused options."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path

import pytest
from click.testing import Result

from robust_export.bundle import Bundle
from tests.cli.invoke import parse_json
from tests.cli.invoke import run as run_command
from tests.serving.triton.bundles import with_engines
from tests.serving.triton.triton_message import read

RTX = {"flavor": "rtx"}


def run(bundle: Bundle, *args: str | Path) -> Result:
    return run_command("triton", "--model", bundle.path, *args)


def test_server_command_is_printed(tmp_path: Path) -> None:
    bundle = with_engines(tmp_path / "net", sm89={}, **{"sm89.rtx": RTX})
    result = run(bundle, "--out", tmp_path / "models", "--plugin", "/p/x.so", "--preferred", "4, 8")
    assert result.exit_code == 0, result.output
    assert shlex.split(result.stdout)[-1] == "--backend-config=tensorrt,plugins=/p/x.so"
    assert "has not been verified; robust-export verify --model" in result.stderr
    found = read((tmp_path / "models" / "net" / "config.pbtxt").read_text())
    assert list(found.dynamic_batching.preferred_batch_size) == [4, 8]


def test_json_output(tmp_path: Path) -> None:
    bundle = with_engines(tmp_path / "net", sm89={})
    digest = bundle.manifest["files"]["model.onnx"]["sha256"]
    report = {"artifacts": [{"sha256": digest, "verdict": "pass"}]}
    (bundle.path / "verify.json").write_text(json.dumps(report))
    result = run(bundle, "--runtime", "onnx", "--device", "gpu", "--gpus", "0,1", "--json")
    assert result.exit_code == 0, result.output
    found = parse_json(result)
    assert found["folder"] == str(bundle.path / "triton" / "net")
    assert found["command"][0] == "tritonserver"
    assert found["facts"]["verdict"] == "pass"
    assert "robust-export verify" not in result.stderr
    Bundle.open(bundle.path)  # a repository in the bundle does not alter it


@pytest.mark.parametrize(
    ("args", "file"),
    [
        (["--compute-capability", "9.0"], "model.sm90.engine"),
        (["--compute-capability", "sm_89"], "model.sm89.engine"),
        (["--engine", "model.sm90.engine"], "model.sm90.engine"),
        (["--precision", "fp16"], "model.fp16.engine"),
        (["--runtime", "onnx"], "model.onnx"),
    ],
)
def test_options_choose_the_file(tmp_path: Path, args: list[str], file: str) -> None:
    bundle = with_engines(
        tmp_path / "net", sm89={}, sm90={"compute_capability": "9.0"}, fp16={"precision": "fp16"}
    )
    result = run(bundle, *args, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["facts"]["file"] == file


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 1, "several engines in fp32: model.sm89.engine, model.sm90.engine"),
        (["--precision", "fp16"], 1, "TensorRT for RTX, which Triton has no backend for"),
        (["--precision", "bf16"], 1, "robust-export tensorrt"),
        (["--precision", "bf16"], 1, "--runtime onnx"),
        (["--compute-capability", "7.5"], 1, "for compute capability 7.5"),
        (["--compute-capability", "new"], 2, "expected one such as 8.9"),
        (["--engine", "model.rtx.engine"], 1, "TensorRT for RTX"),
        (["--engine", "model.many.engine"], 1, "takes batches of at least 8 images"),
        (["--engine", "model.onnx"], 1, "no engine model.onnx; it has model.sm89.engine"),
        (["--runtime", "onnx", "--precision", "int8"], 1, "robust-export onnx"),
        (["--runtime", "onnx", "--engine", "model.sm89.engine"], 2, "leave out --runtime onnx"),
        (["--runtime", "onnx", "--gpus", "0,x"], 2, "--gpus is '0,x'"),
        (["--runtime", "onnx", "--preferred", "0"], 2, "preferred"),
        (["--runtime", "onnx", "--instances", "0"], 2, "'--instances'"),
        (["--runtime", "onnx", "--max-delay", "-1"], 2, "'--max-delay'"),
        (["--runtime", "onnx", "--op-library", "x.so"], 2, "absolute path on the server"),
        (["--runtime", "onnx", "--plugin", "/a.so;/b.so"], 2, "absolute path on the server"),
        (
            ["--runtime", "onnx", "--device", "cpu", "--gpus", "0"],
            2,
            "gpus and device cpu exclude each other",
        ),
    ],
)
def test_bad_options(tmp_path: Path, args: list[str], code: int, message: str) -> None:
    bundle = with_engines(
        tmp_path / "net", sm89={}, sm90={"compute_capability": "9.0"}, rtx=RTX | {"precision": "fp16"},
        many={"precision": "int8", "profile": {"min": 8, "opt": 8, "max": 8}},
    )  # fmt: skip
    result = run(bundle, *args)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not (bundle.path / "triton").exists()


def test_altered_bundle_is_refused(tmp_path: Path) -> None:
    bundle = with_engines(tmp_path / "net", sm89={})
    bundle.file("model.onnx").write_bytes(b"other")
    result = run(bundle)
    assert result.exit_code == 1
    assert "model.onnx was altered" in result.stderr


def test_rtx_engine_is_refused(bundle: Bundle) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    from robust_export.export.tensorrt.bundle_engines import export_engines

    export_engines(bundle, variant="rtx", plugin="none", capabilities=[(8, 9)])
    result = run(bundle)
    assert result.exit_code == 1
    assert "model.body.sm89.rtx.engine is an engine of TensorRT for RTX" in result.stderr
    result = run(bundle, "--runtime", "onnx", "--json")
    assert json.loads(result.stdout)["facts"]["threat"] == "Linf 0.1"
