"""Builds the Dockerfile's target `cpu` without a Docker engine, runs it and asks it: `make docker-test`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from tests.deploy.images import Image, build, check_machine, mounted, tool
from tests.serving.asking import as_bytes, as_json, read
from tests.serving.bundles import Array

NAME = "localhost/robust-export:cpu"
PROGRAMS = {"usr/bin/python3", "usr/bin/python3.11", "app/bin/robust-export"}
LINKS = {"app/bin/python", "app/bin/python3", "app/bin/python3.11"}


def main() -> None:
    check_machine()
    build("cpu", NAME)
    with tempfile.TemporaryDirectory() as name, mounted(NAME) as image:
        work = Path(name)
        work.chmod(0o755)  # another user reads the bundle
        nothing_but_python(image)
        pixels, logits = trained(work / "tiny")
        serve(image, work, pixels, logits)
    print("docker-test: the image `cpu` was built, served, and gave the right answers")


def nothing_but_python(image: Image) -> None:
    """See that there are no programs but the interpreter and ours, no torch, and no root."""
    folders = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local", "app/bin", "usr/libexec")
    found = {
        str(path.relative_to(image.root)) for folder in folders for path in (image.root / folder).rglob("*")
    }
    assert found == PROGRAMS | LINKS, found
    packages = {path.name for path in (image.root / "app/lib/python3.11/site-packages").iterdir()}
    assert "onnxruntime" in packages
    unwanted = {name for name in packages if name.split("-")[0] in ("pip", "setuptools", "timm", "torch")}
    assert not unwanted, unwanted
    assert image.config["User"] == "65532:65532"
    loose = [path for path in image.root.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o6002]
    assert loose == [image.root / "tmp"], loose  # nobody else may write, and nothing changes its user
    size = sum(
        path.stat().st_size for path in image.root.rglob("*") if path.is_file() and not path.is_symlink()
    )
    print(f"docker-test: {size / 1e6:.0f} MB")


def trained(folder: Path) -> tuple[Array, Array]:
    """Train and export a Sparta network; return pixels, and its logits by PyTorch."""
    from tests.conftest import tiny_recipe  # isort: skip  # first: it holds torch to one thread
    import torch

    import robust_export
    from robust_export.export.bundle_onnx import export_bundle
    from robust_export.training.run import train

    bundle = train(tiny_recipe(), folder, device="cpu")
    export_bundle(bundle)
    pixels = np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    with torch.no_grad():
        return pixels, robust_export.load(folder)(torch.from_numpy(pixels)).numpy()


def serve(image: Image, work: Path, pixels: Array, logits: Array) -> None:
    """Serve the bundle by the image's own command, and ask."""
    with image.start(work / "tiny", [*image.command(), "--json"], work / "log") as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (work / "log").read_text()
            [facts] = json.loads(line)["models"]
            assert facts["fused_nodes"] == facts["sparta_nodes"] > 0, facts
            healthy = image.run(process.pid, image.health())
            assert healthy.returncode == 0, healthy.stderr
            limits(image, process.pid)
            request = {"pixels": pixels.tolist(), "logits": logits.tolist()}
            (work / "request.json").write_text(json.dumps(request))
            command = [tool("nsenter"), f"--target={process.pid}", "--net", sys.executable, __file__]
            subprocess.run([*command, str(work / "request.json")], check=True, timeout=60)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, (work / "log").read_text()
        finally:
            process.kill()
    alone = image.start(work / "tiny", image.health(), work / "log")  # where nothing serves
    alone.communicate(timeout=60)
    assert alone.returncode == 1, (work / "log").read_text()


def limits(image: Image, process: int) -> None:
    """See that the server is nobody, can gain nothing, and can write in /tmp alone."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65532"}
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    for place, outcome in (("/tmp/x", 0), ("/app/x", 1), ("/bundle/x", 1), ("/x", 1)):
        ran = image.run(process, ["python", "-I", "-c", f"open({place!r}, 'w')"])
        assert ran.returncode == outcome, (place, ran.stderr)
        assert outcome == 0 or "Read-only" in ran.stderr or "Permission" in ran.stderr, ran.stderr
    system = image.run(process, ["python", "-I", "-c", "import os; print(os.system('true'))"])
    assert system.stdout.strip() not in ("", "0"), "there is a shell"


def ask(file: Path) -> None:
    """Ask the server, within its network: JSON, binary tensors, gRPC."""
    import grpc
    import httpx

    known: dict[str, Any] = json.loads(file.read_text())
    pixels, logits = np.array(known["pixels"], np.float32), np.array(known["logits"], np.float32)
    raw, headers = as_bytes(pixels, "logits")
    for content, more in ((as_json(pixels, "logits"), {}), (raw, headers)):
        answer = httpx.post(
            "http://127.0.0.1:8000/v2/models/tiny/infer", content=content, headers=more, timeout=60
        ).raise_for_status()
        found = read(answer.content, answer.headers)["logits"].reshape(logits.shape)
        np.testing.assert_allclose(found, logits, atol=1e-4)
    with grpc.insecure_channel("127.0.0.1:8001") as channel:
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=60)
        assert live == b"\x08\x01", live  # live: true


if __name__ == "__main__":
    ask(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
