"""robust-export tensorrt: engines and their manifest entries, messages, refused options."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import onnx
import pytest
from click.testing import Result

from robust_export.bundle import Bundle
from robust_export.export.tensorrt.monitor import Monitor
from robust_export.runtimes.tensorrt.variants import Variant
from robust_export.utils.files import sha256
from tests.cli.invoke import parse_json
from tests.cli.invoke import run as run_command


def run(bundle: Bundle, *args: str | Path) -> Result:
    return run_command("tensorrt", "--model", bundle.path, *args)


def test_engines_are_listed_in_the_manifest(full_bundle: Bundle, rtx: Variant, plugin: Path) -> None:
    result = run(
        full_bundle, "--precision", "fp16", "--flavor", "rtx", "--compute-capability", "8.9,sm_120",
        "--compute-capability", "75", "--batch", "1,4,8", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = parse_json(result)
    names = [f"model.fp16.sm{number}.rtx.engine" for number in (89, 120, 75)]
    assert [Path(engine["file"]).name for engine in found["engines"]] == names
    assert found["refused"] == []
    opened = Bundle.open(full_bundle.path)  # checks every digest
    assert opened.files("engine") == names
    nodes = sum(n.op_type == "Sparta" for n in onnx.load(full_bundle.file("model.fp16.onnx")).graph.node)
    entry = opened.manifest["files"][names[0]]
    assert entry == {
        "sha256": sha256(opened.file(names[0])), "bytes": opened.file(names[0]).stat().st_size,
        "kind": "engine", "precision": "fp16", "flavor": "rtx", "tensorrt": rtx.version,
        "compute_capability": "8.9", "plugin": "library", "plugin_library": sha256(plugin),
        "sparta_nodes": nodes, "plugin_layers": nodes, "profile": {"min": 1, "opt": 4, "max": 8},
        "source": {"file": "model.fp16.onnx", "sha256": sha256(full_bundle.file("model.fp16.onnx"))},
        "options": {"tf32": False, "fuse_add": False, "workspace": None, "version_compatible": False,
                    "hardware_compatible": None},
        "inspected": False,
    }  # fmt: skip
    assert found["engines"][0] == {"file": str(opened.file(names[0])), **entry}
    assert "not run on a GPU here" in result.stderr


def test_refused_capabilities_are_reported(bundle: Bundle, rtx: Variant) -> None:
    result = run(bundle, "--flavor", "rtx", "--plugin", "none", "--json")
    assert result.exit_code == 0, result.output
    found = parse_json(result)
    names = [Path(engine["file"]).name for engine in found["engines"]]
    assert "model.body.sm89.rtx.engine" in names
    assert {engine["plugin_layers"] for engine in found["engines"]} == {0}
    assert {engine["plugin_library"] for engine in found["engines"]} == {None}
    assert [entry["compute_capability"] for entry in found["refused"]] == ["7.5"]
    assert "no engine for compute capability 7.5: " in result.stderr
    result = run(bundle, "--flavor", "rtx", "--plugin", "none", "--compute-capability", "7.5")
    assert result.exit_code == 1
    assert "FP32 GEMM is not supported" in result.stderr


def test_explain_builds_nothing(bundle: Bundle, rtx: Variant, plugin: Path, tmp_path: Path) -> None:
    saved = tmp_path / "given.onnx"
    result = run(bundle, "--flavor", "rtx", "--explain", "--fuse-add", "--save-onnx", saved, "--json")
    assert result.exit_code == 0, result.output
    found = parse_json(result)
    kinds = [layer["kind"] for layer in found["layers"]]
    assert kinds.count("PLUGIN_V3") == found["plugin_layers"] == found["sparta_nodes"] > 0
    given = onnx.load(saved)
    assert not given.functions
    assert "SpartaAdd" in {node.op_type for node in given.graph.node}
    assert not Bundle.open(bundle.path).files("engine")
    table = run(bundle, "--flavor", "rtx", "--explain").stdout
    assert "PLUGIN_V3" in table
    assert "CONVOLUTION" in table


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--precision", "fp16"], 1, "robust-export onnx --model"),
        (["--compute-capability", "new"], 2, "expected one such as 8.9"),
        (["--compute-capability", "9.0", "--flavor", "rtx", "--plugin", "none"], 2, "7.5, 8.0, 8.6"),
        (["--batch", "1,2"], 2, "such as 1,32,256"),
        (["--batch", "8,4,2"], 2, "batch is 8,4,2"),
        (["--batch", "many"], 2, "--batch is 'many'"),
        (["--workspace", "-1"], 2, "'--workspace'"),
        (["--fuse-add", "--plugin", "none"], 2, "--fuse-add was given with --plugin none"),
        (["--plugin", "aott"], 2, "'library', 'aot', 'none'"),
        (["--plugin", "aot", "--flavor", "rtx"], 1, "has no ahead-of-time plugins"),
        (["--timing-cache", "x", "--flavor", "rtx", "--plugin", "none"], 1, "no timing cache"),
    ],
)
def test_bad_options(bundle: Bundle, rtx: Variant, args: list[str], code: int, message: str) -> None:
    result = run(bundle, *args)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not Bundle.open(bundle.path).files("engine")


def test_graph_is_saved_without_tensorrt(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robust_export.runtimes.tensorrt.rtx_wheel.find_spec", lambda module: None)
    saved = tmp_path / "given.onnx"
    result = run(bundle, "--save-onnx", saved)
    assert result.exit_code == 1
    assert "pip install 'robust-export[rtx]'" in result.stderr
    assert onnx.load(saved).graph.node


@pytest.mark.usefixtures("foreground")
def test_ctrl_c_prints_one_line(bundle: Bundle, rtx: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[str] = []

    def stop(phase: str) -> None:
        stopped.append(phase)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("robust_export.export.tensorrt.monitor.Monitor", lambda _: Monitor(stop))
    result = run(bundle, "--flavor", "rtx", "--plugin", "none", "--compute-capability", "8.9")
    assert result.exit_code == 1
    assert "the build was interrupted; the engines written so far are complete" in result.stderr
    assert stopped
    assert not Bundle.open(bundle.path).files("engine")
