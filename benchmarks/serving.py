"""The embedded server under load: its throughput beside the same file's in process, latency, and memory.

    python benchmarks/serving.py                             an untrained ResNet-18 at 32 x 32
    python benchmarks/serving.py exported/demo --requests 100000

starts `robust-export serve`, and a second process that keeps --clients connections busy, one request after
another on each, of --images images as binary tensors over REST. The clients are asyncio's streams with
HTTP/1.1 written by hand: they share the cores with the server, and a library's client costs as much as the
server. The same file in this process, at the batch size that is best for it, takes turns with them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from robust_export.bundle import Bundle
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier

BATCHES = (1, 2, 4, 8, 16, 32, 64)
READINGS = 10  # of the memory, over all requests


def untrained(folder: Path) -> Path:
    """Write a bundle of an untrained ResNet-18, which takes as long as a trained one."""
    from robust_export.export.exporter import export_onnx
    from robust_export.nn.models import create_model

    folder.mkdir()
    export_onnx(create_model("r18_sparta").eval(), folder / "model.onnx", 32)
    manifest = {
        "name": "r18_sparta", "created": "", "model": "r18_sparta", "labels": [str(i) for i in range(10)],
        "input": {}, "output": {}, "preprocessing": {}, "threat": {}, "provenance": {},
    }  # fmt: skip
    return Bundle.create(folder, manifest, {"model.onnx": "onnx"}).path


@contextmanager
def serving(bundle: Path, options: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Give what `serve --json` prints, and the process's "pid"."""
    command = [sys.executable, "-m", "robust_export", "serve", "--model", str(bundle), "--json"]
    command += ["--port", "0", "--no-grpc", "--log-level", "warning", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield {**json.loads(process.stdout.readline()), "pid": process.pid}
        finally:
            process.terminate()


def in_process(classifier: OnnxRuntimeClassifier, batch: int, seconds: float) -> tuple[float, float]:
    """Return images a second, and the milliseconds of a core that an image took."""
    pixels = np.random.default_rng(0).random((batch, *classifier.plane), dtype=np.float32)
    classifier(pixels)
    done, started, busy = 0, time.perf_counter(), time.process_time()
    while (taken := time.perf_counter() - started) < seconds:
        classifier(pixels)
        done += batch
    return done / taken, (time.process_time() - busy) * 1000 / done


def load(url: str, clients: int, images: int, **until: float) -> dict[str, Any]:
    """Return what a second process saw: requests, seconds, and the latencies' percentiles in ms."""
    job = json.dumps({"url": url, "clients": clients, "images": images, **until})
    ran = subprocess.run([sys.executable, __file__, "--load", job], stdout=subprocess.PIPE, check=True)
    seen: dict[str, Any] = json.loads(ran.stdout)
    return seen


async def be_clients(url: str, clients: int, images: int, seconds: float, requests: float) -> dict[str, Any]:
    """Ask for `seconds`, or until there were so many requests, whichever is first."""
    address = urlsplit(url)
    plane = json.loads(await _get(url))["inputs"][0]["shape"][1:]
    head = f"POST {address.path}/infer HTTP/1.1\r\nHost: {address.netloc}\r\n"
    latencies: list[float] = []
    started = time.perf_counter()

    async def client(number: int) -> None:
        body = _body(np.random.default_rng(number).random((images, *plane), dtype=np.float32))
        request = head.encode() + body
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        while time.perf_counter() - started < seconds and len(latencies) < requests:
            asked = time.perf_counter()
            writer.write(request)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not answer.startswith(b"http/1.1 200"):
                raise SystemExit(f"the server answered {answer!r}")
            length = answer.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
            latencies.append(time.perf_counter() - asked)
        writer.close()

    await asyncio.gather(*map(client, range(clients)))
    taken = time.perf_counter() - started
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return {
        "requests": len(latencies), "seconds": taken, "p50": float(p50), "p99": float(p99),
        "busy": time.process_time(),
    }  # fmt: skip


def _body(pixels: Any) -> bytes:
    raw: bytes = pixels.tobytes()
    tensor = {
        "name": "pixels", "datatype": "FP32", "shape": list(pixels.shape),
        "parameters": {"binary_data_size": len(raw)},
    }  # fmt: skip
    asked = {"inputs": [tensor], "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}
    text = json.dumps(asked).encode()
    lengths = (
        f"Content-Length: {len(text) + len(raw)}\r\nInference-Header-Content-Length: {len(text)}\r\n\r\n"
    )
    return lengths.encode() + text + raw


async def _get(url: str) -> bytes:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    asked = f"GET {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n"
    writer.write(asked.encode())
    content = await reader.read()
    writer.close()
    return content.split(b"\r\n\r\n", 1)[1]


def busy(pid: int) -> float:
    """Return the seconds that a process has kept cores busy."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Return the memory of a process, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no memory")


def throughput(bundle: Path, asked: argparse.Namespace) -> None:
    """Print images a second in process and served, in turns; and what an image costs, whatever else runs."""
    classifier = OnnxRuntimeClassifier(bundle / "model.onnx", spin=asked.spin)
    speeds = {batch: in_process(classifier, batch, asked.seconds / 4)[0] for batch in BATCHES}
    best = max(speeds, key=lambda batch: speeds[batch])
    print("in process: " + ", ".join(f"batch {b}: {v:.0f} images/s" for b, v in speeds.items()))
    with serving(bundle, asked.serve.split()) as facts:
        url = f"{facts['rest']}/v2/models/{facts['models'][0]['name']}"
        load(url, asked.clients, asked.images, seconds=1, requests=1e9)
        rounds = []
        for _ in range(asked.rounds):
            rounds.append(one_round(classifier, best, url, facts["pid"], asked))
            print(line(rounds[-1]))
    medians = [median(column) for column in zip(*rounds, strict=True)]
    print(f"medians, batch {best} in process: {line(medians)}")
    print(f"{asked.clients} clients, {asked.images} images a request, {os.cpu_count()} cores")


def one_round(
    classifier: OnnxRuntimeClassifier, batch: int, url: str, pid: int, asked: argparse.Namespace
) -> list[float]:
    """Return the values that `line` prints."""
    alone, cost = in_process(classifier, batch, asked.seconds)
    before = busy(pid)
    seen = load(url, asked.clients, asked.images, seconds=asked.seconds, requests=1e9)
    images = seen["requests"] * asked.images
    served, server = images / seen["seconds"], (busy(pid) - before) * 1000 / images
    clients = seen["busy"] * 1000 / images
    return [alone, served, served / alone, seen["p50"], seen["p99"], cost, server, clients]


def line(values: Sequence[float]) -> str:
    alone, served, ratio, p50, p99, cost, server, clients = values
    return (
        f"{alone:.0f} images/s, served {served:.0f} ({ratio:.2f}), p50 {p50:.1f} ms, p99 {p99:.1f} ms; "
        f"of a core, {cost:.1f} ms an image, served {server:.1f} ms, clients {clients:.2f} ms"
    )


def memory(bundle: Path, asked: argparse.Namespace) -> None:
    """Print the server's memory as so many requests go by."""
    with serving(bundle, asked.serve.split()) as facts:
        url = f"{facts['rest']}/v2/models/{facts['models'][0]['name']}"
        print(f"before the first request: {resident(facts['pid']):.1f} MiB")
        done = 0
        for _ in range(READINGS):
            seen = load(url, asked.clients, asked.images, seconds=1e9, requests=asked.requests // READINGS)
            done += seen["requests"]
            print(
                f"after {done} requests: {resident(facts['pid']):.1f} MiB; "
                f"{seen['requests'] / seen['seconds']:.0f} requests/s, p99 {seen['p99']:.1f} ms"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="Loads the embedded server from a second process.")
    parser.add_argument("bundle", nargs="?", type=Path, help="an untrained ResNet-18 at 32 x 32 by default")
    parser.add_argument("--requests", type=int, default=0, help="so many, and the memory meanwhile")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--images", type=int, default=1, help="of a request")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spin", action="store_true", help="let idle threads of the file in process spin")
    parser.add_argument("--serve", default="", help="options of robust-export serve")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.load:
        print(json.dumps(asyncio.run(be_clients(**json.loads(asked.load)))))
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = asked.bundle or untrained(Path(folder) / "r18_sparta")
        (memory if asked.requests else throughput)(bundle, asked)


if __name__ == "__main__":
    main()
