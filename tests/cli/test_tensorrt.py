"""robust-export tensorrt: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from robust_export.bundle import Bundle
from robust_export.cli import cli
from robust_export.export.tensorrt.builder import Batch, Options
from robust_export.export.tensorrt.bundle_engines import export_engine
from robust_export.export.tensorrt.monitor import Monitor
from robust_export.runtimes.tensorrt.variants import Variant
from robust_export.utils.files import sha256


def run(bundle: Bundle, *args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["tensorrt", "--model", str(bundle.path), *map(str, args)])


def test_engines_are_listed_in_the_bundle(whole: Bundle, rtx: Variant, plugin: Path) -> None:
    result = run(
        whole, "--precision", "fp16", "--flavor", "rtx", "--compute-capability", "8.9,sm_120",
        "--compute-capability", "75", "--batch", "1,4,8", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    names = [f"model.fp16.sm{number}.rtx.engine" for number in (89, 120, 75)]
    assert [Path(engine["file"]).name for engine in found["engines"]] == names
    assert found["refused"] == []
    opened = Bundle.open(whole.path)  # which checks every digest
    assert opened.files("engine") == names
    nodes = sum(n.op_type == "Sparta" for n in onnx.load(whole.file("model.fp16.onnx")).graph.node)
    entry = opened.manifest["files"][names[0]]
    assert entry == {
        "sha256": sha256(opened.file(names[0])), "bytes": opened.file(names[0]).stat().st_size,
        "kind": "engine", "precision": "fp16", "flavor": "rtx", "tensorrt": rtx.version,
        "compute_capability": "8.9", "plugin": "library", "plugin_library": sha256(plugin),
        "sparta_nodes": nodes, "plugin_layers": nodes, "profile": {"min": 1, "opt": 4, "max": 8},
        "source": {"file": "model.fp16.onnx", "sha256": sha256(whole.file("model.fp16.onnx"))},
        "options": {"tf32": False, "fuse_add": False, "workspace": None, "version_compatible": False,
                    "hardware_compatible": None},
        "inspected": False,
    }  # fmt: skip
    assert found["engines"][0] == {"file": str(opened.file(names[0])), **entry}
    assert "not run on a GPU here" in result.stderr


def test_what_rtx_refuses_is_left_out_and_said(bundle: Bundle, rtx: Variant) -> None:
    result = run(bundle, "--flavor", "rtx", "--plugin", "none", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = [Path(engine["file"]).name for engine in found["engines"]]
    assert "model.body.sm89.rtx.engine" in names
    assert {engine["plugin_layers"] for engine in found["engines"]} == {0}
    assert {engine["plugin_library"] for engine in found["engines"]} == {None}
    assert [entry["compute_capability"] for entry in found["refused"]] == ["7.5"]
    assert "no engine for compute capability 7.5: " in result.stderr
    result = run(bundle, "--flavor", "rtx", "--plugin", "none", "--compute-capability", "7.5")
    assert result.exit_code == 1
    assert "FP32 GEMM is not supported" in result.stderr


def test_explain_prints_layers_and_builds_nothing(
    bundle: Bundle, rtx: Variant, plugin: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "given.onnx"
    result = run(bundle, "--flavor", "rtx", "--explain", "--fuse-add", "--save-onnx", saved, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
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
    ("args", "code", "words"),
    [
        (["--precision", "fp16"], 1, "robust-export onnx --model"),
        (["--compute-capability", "new"], 2, "expected one such as 8.9"),
        (["--compute-capability", "9.0", "--flavor", "rtx", "--plugin", "none"], 2, "7.5, 8.0, 8.6"),
        (["--batch", "1,2"], 2, "such as 1,32,256"),
        (["--batch", "8,4,2"], 2, "batch is 8,4,2"),
        (["--batch", "many"], 2, "--batch is 'many'"),
        (["--workspace", "-1"], 2, "workspace is -1.0 GiB"),
        (["--fuse-add", "--plugin", "none"], 2, "--fuse-add was given with --plugin none"),
        (["--plugin", "aott"], 2, "'library', 'aot', 'none'"),
        (["--plugin", "aot", "--flavor", "rtx"], 1, "has no plugins that are compiled ahead of time"),
        (["--timing-cache", "x", "--flavor", "rtx", "--plugin", "none"], 1, "no timing cache"),
    ],
)
def test_what_is_refused(bundle: Bundle, rtx: Variant, args: list[str], code: int, words: str) -> None:
    result = run(bundle, *args)
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert not Bundle.open(bundle.path).files("engine")


def test_the_graph_is_saved_where_there_is_no_tensorrt(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robust_export.runtimes.tensorrt.rtx_wheel.spec", lambda module: None)
    saved = tmp_path / "given.onnx"
    result = run(bundle, "--save-onnx", saved)
    assert result.exit_code == 1
    assert "pip install 'robust-export[rtx]'" in result.stderr
    assert onnx.load(saved).graph.node


INTERRUPT = """
import os, signal, sys
from robust_export.bundle import Bundle
from robust_export.export.tensorrt import Batch, Options, export_engine
from robust_export.export.tensorrt.monitor import Monitor
what = getattr(signal, sys.argv[2])
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job's shell ignores
seen = []
def on_phase(phase):
    seen.append(phase)
    if seen.count("Building engine") == 2:  # the second engine has begun; whoever is in a hurry asks often
        os.kill(os.getpid(), what)
export_engine(Bundle.open(sys.argv[1]), plugin="none", capabilities=[(8, 6), (8, 9)], flavor="rtx",
              monitor=Monitor(on_phase))
"""


@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_whatever_interrupts_a_build_leaves_the_bundle_whole(bundle: Bundle, rtx: Variant, how: str) -> None:
    command = [sys.executable, "-c", INTERRUPT, str(bundle.path), how]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=120)
    assert ran.returncode in (-getattr(signal, how), 1)
    if how == "SIGINT":
        assert ran.stderr.strip().endswith("KeyboardInterrupt")  # Python's own end, not TensorRT's
    opened = Bundle.open(bundle.path)
    assert opened.files("engine") == ["model.body.sm86.rtx.engine"]
    assert run(bundle, "--flavor", "rtx", "--plugin", "none", "--compute-capability", "8.9").exit_code == 0


@pytest.mark.usefixtures("foreground")
def test_ctrl_c_is_one_line(bundle: Bundle, rtx: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[str] = []

    def phases(console: object) -> object:
        def stop(phase: str) -> None:
            stopped.append(phase)
            os.kill(os.getpid(), signal.SIGINT)

        return stop

    monkeypatch.setattr("robust_export.cli.tensorrt._phases", phases)
    result = run(bundle, "--flavor", "rtx", "--plugin", "none", "--compute-capability", "8.9")
    assert result.exit_code == 1
    assert "building was interrupted; the engines that were written are whole" in result.stderr
    assert stopped
    assert not Bundle.open(bundle.path).files("engine")


@pytest.mark.usefixtures("foreground")
def test_a_build_is_told_to_stop(rtx: Variant) -> None:
    monitor = Monitor()
    listener = monitor.listener(rtx.trt)

    def work() -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        while listener.step_complete("phase", 1):
            pass  # until it is told

    with pytest.raises(KeyboardInterrupt):
        monitor.run(work)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_building_again_replaces(bundle: Bundle, rtx: Variant) -> None:
    for maximum in (2, 4):
        given = {"capabilities": [(8, 9)], "flavor": "rtx", "plugin": "none", "monitor": Monitor()}
        [path] = export_engine(bundle, options=Options(Batch(1, 2, maximum)), **given)  # type: ignore[arg-type]
        assert Bundle.open(bundle.path).manifest["files"][path.name]["profile"]["max"] == maximum
    assert Bundle.open(bundle.path).files("engine") == ["model.body.sm89.rtx.engine"]
