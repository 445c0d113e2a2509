"""Builds and runs the Dockerfile's target `cpu` without a Docker engine (make docker-test)."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from tests.deploy.image_tools import Image, build, check_machine, mounted, tool
from tests.serving.bundles import Array
from tests.serving.request_bodies import as_bytes, as_json, read

NAME = "localhost/robust-export:cpu"
PROGRAMS = {"usr/bin/python3", "usr/bin/python3.11", "app/bin/robust-export"}
LINKS = {"app/bin/python", "app/bin/python3", "app/bin/python3.11"}


def main() -> None:
    check_machine()
    build("cpu", NAME)
    with tempfile.TemporaryDirectory() as name, mounted(NAME) as image:
        work = Path(name)
        work.chmod(0o755)  # the image's user reads the bundle
        check_files(image)
        pixels, logits = train_bundle(work / "tiny")
        check_server(image, work, pixels, logits)
    print("docker-test: the image `cpu` was built, served, and returned the right logits")


def check_files(image: Image) -> None:
    """Check that the only programs are Python and robust-export, and that only root can write files."""
    folders = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local", "app/bin", "usr/libexec")
    programs = {
        str(path.relative_to(image.root)) for folder in folders for path in (image.root / folder).rglob("*")
    }
    assert programs == PROGRAMS | LINKS, programs
    packages = {path.name for path in (image.root / "app/lib/python3.11/site-packages").iterdir()}
    assert "onnxruntime" in packages
    unwanted = {name for name in packages if name.split("-")[0] in ("pip", "setuptools", "timm", "torch")}
    assert not unwanted, unwanted
    assert image.config["User"] == "65532:65532"
    writable = [
        path for path in image.root.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o6002
    ]
    assert writable == [image.root / "tmp"], writable  # also finds setuid and setgid files
    size = sum(
        path.stat().st_size for path in image.root.rglob("*") if path.is_file() and not path.is_symlink()
    )
    print(f"docker-test: {size / 1e6:.0f} MB")


def train_bundle(folder: Path) -> tuple[Array, Array]:
    """Train and export a Sparta network; return pixels and PyTorch's logits."""
    from tests.conftest import tiny_recipe  # isort: skip  # first: sets OMP_NUM_THREADS
    import torch

    import robust_export
    from robust_export.export.bundle_onnx import export_bundle
    from robust_export.training.run import train

    bundle = train(tiny_recipe(), folder, device="cpu")
    export_bundle(bundle)
    pixels = np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    with torch.no_grad():
        return pixels, robust_export.load(folder)(torch.from_numpy(pixels)).numpy()


def check_server(image: Image, work: Path, pixels: Array, logits: Array) -> None:
    """Start the image's own command, and compare logits, health check, permissions and exit codes."""
    with image.start(work / "tiny", [*image.command(), "--json"], work / "log") as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (work / "log").read_text()
            [facts] = json.loads(line)["models"]
            assert facts["fused_nodes"] == facts["sparta_nodes"] > 0, facts
            healthy = image.run(process.pid, image.health())
            assert healthy.returncode == 0, healthy.stderr
            check_permissions(image, process.pid)
            request = {"pixels": pixels.tolist(), "logits": logits.tolist()}
            (work / "request.json").write_text(json.dumps(request))
            command = [tool("nsenter"), f"--target={process.pid}", "--net", sys.executable, __file__]
            subprocess.run([*command, str(work / "request.json")], check=True, timeout=60)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, (work / "log").read_text()
        finally:
            process.kill()
    unhealthy = image.start(work / "tiny", image.health(), work / "log")  # no server runs
    unhealthy.communicate(timeout=60)
    assert unhealthy.returncode == 1, (work / "log").read_text()


def check_permissions(image: Image, process: int) -> None:
    """Check that the server runs as 65532 without capabilities, and can write in /tmp only."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65532"}
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    for path, exit_code in (("/tmp/x", 0), ("/app/x", 1), ("/bundle/x", 1), ("/x", 1)):
        result = image.run(process, ["python", "-I", "-c", f"open({path!r}, 'w')"])
        assert result.returncode == exit_code, (path, result.stderr)
        assert exit_code == 0 or re.search("Read-only|Permission", result.stderr), result.stderr
    system = image.run(process, ["python", "-I", "-c", "import os; print(os.system('true'))"])
    assert system.stdout.strip() not in ("", "0"), "the image has a shell"


def send_requests(file: Path) -> None:
    """Send JSON, binary tensors and gRPC to the server; runs in its network namespace."""
    import grpc
    import httpx

    request: dict[str, Any] = json.loads(file.read_text())
    pixels, logits = np.array(request["pixels"], np.float32), np.array(request["logits"], np.float32)
    raw, headers = as_bytes(pixels, "logits")
    for content, extra_headers in ((as_json(pixels, "logits"), {}), (raw, headers)):
        response = httpx.post(
            "http://127.0.0.1:8000/v2/models/tiny/infer", content=content, headers=extra_headers, timeout=60
        ).raise_for_status()
        received = read(response.content, response.headers)["logits"].reshape(logits.shape)
        np.testing.assert_allclose(received, logits, atol=1e-4)
    with grpc.insecure_channel("127.0.0.1:8001") as channel:
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=60)
        assert live == b"\x08\x01", live  # live: true


if __name__ == "__main__":
    send_requests(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
