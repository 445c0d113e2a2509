"""Load test of the inference server: throughput, latency and memory.

    python benchmarks/serving.py                             an untrained ResNet-18 at 32 x 32
    python benchmarks/serving.py exported/demo --requests 100000

Starts `robust-export serve`, and a client process with --clients connections, each of which sends one REST
request after another with --images images as binary tensors. Between these measurements, this process runs
the same file at its best batch size. The clients write HTTP/1.1 on asyncio streams: they share the cores with
the server, and an HTTP library would use as much CPU time as the server.
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
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from robust_export.bundle import Bundle
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier

BATCHES = (1, 2, 4, 8, 16, 32, 64)
MEMORY_READINGS = 10  # evenly spaced over all requests


def write_untrained_bundle(folder: Path) -> Path:
    """Write a bundle of an untrained ResNet-18, which is as fast as a trained one."""
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
def start_server(bundle: Path, options: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield what `serve --json` prints, with the process id as "pid"."""
    command = [sys.executable, "-m", "robust_export", "serve", "--model", str(bundle), "--json"]
    command += ["--port", "0", "--no-grpc", "--log-level", "warning", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield {**json.loads(process.stdout.readline()), "pid": process.pid}
        finally:
            process.terminate()


def measure_in_process(classifier: OnnxRuntimeClassifier, batch: int, seconds: float) -> tuple[float, float]:
    """Return images per second, and CPU time per image in ms."""
    pixels = np.random.default_rng(0).random((batch, *classifier.input_shape), dtype=np.float32)
    classifier(pixels)
    images, start, cpu_start = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds:
        classifier(pixels)
        images += batch
    return images / elapsed, (time.process_time() - cpu_start) * 1000 / images


def run_clients(url: str, clients: int, images: int, **limits: float) -> dict[str, Any]:
    """Run the clients in a second process; return the result of `send_requests`."""
    job = json.dumps({"url": url, "clients": clients, "images": images, **limits})
    command = [sys.executable, __file__, "--run-clients", job]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    result: dict[str, Any] = json.loads(output)
    return result


async def send_requests(
    url: str, clients: int, images: int, seconds: float, requests: float
) -> dict[str, Any]:
    """Send requests for `seconds` or until `requests` were answered, whichever comes first.

    Returns:
        requests, seconds, p50 and p99 latency in ms, cpu: CPU time of this process in s.
    """
    address = urlsplit(url)
    input_shape = json.loads(await get(url))["inputs"][0]["shape"][1:]
    request_line = f"POST {address.path}/infer HTTP/1.1\r\nHost: {address.netloc}\r\n"
    latencies: list[float] = []
    start = time.perf_counter()

    async def client(seed: int) -> None:
        pixels = np.random.default_rng(seed).random((images, *input_shape), dtype=np.float32)
        request = request_line.encode() + headers_and_body(pixels)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        while time.perf_counter() - start < seconds and len(latencies) < requests:
            sent = time.perf_counter()
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 200"):
                raise SystemExit(f"the server answered {head!r}")
            length = head.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
            latencies.append(time.perf_counter() - sent)
        writer.close()

    await asyncio.gather(*map(client, range(clients)))
    elapsed = time.perf_counter() - start
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return {
        "requests": len(latencies), "seconds": elapsed, "p50": float(p50), "p99": float(p99),
        "cpu": time.process_time(),
    }  # fmt: skip


def headers_and_body(pixels: Any) -> bytes:
    raw: bytes = pixels.tobytes()
    tensor = {
        "name": "pixels", "datatype": "FP32", "shape": list(pixels.shape),
        "parameters": {"binary_data_size": len(raw)},
    }  # fmt: skip
    request = {"inputs": [tensor], "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}
    text = json.dumps(request).encode()
    headers = (
        f"Content-Length: {len(text) + len(raw)}\r\nInference-Header-Content-Length: {len(text)}\r\n\r\n"
    )
    return headers.encode() + text + raw


async def get(url: str) -> bytes:
    """Return the body of a GET request."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    request = f"GET {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n"
    writer.write(request.encode())
    content = await reader.read()
    writer.close()
    return content.split(b"\r\n\r\n", 1)[1]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/{pid}/status has no VmRSS")


@dataclass(frozen=True)
class Round:
    """Throughput in images per second, latencies in ms, and CPU time per image in ms."""

    in_process: float
    served: float
    ratio: float
    p50: float
    p99: float
    in_process_cpu: float
    server_cpu: float
    client_cpu: float

    def __str__(self) -> str:
        return (
            f"{self.in_process:.0f} images/s, served {self.served:.0f} ({self.ratio:.2f}), "
            f"p50 {self.p50:.1f} ms, p99 {self.p99:.1f} ms; CPU per image: in process "
            f"{self.in_process_cpu:.1f} ms, server {self.server_cpu:.1f} ms, clients {self.client_cpu:.2f} ms"
        )


def measure_round(
    classifier: OnnxRuntimeClassifier, batch: int, url: str, pid: int, options: argparse.Namespace
) -> Round:
    """Measure the file in this process, then the server."""
    in_process, in_process_cpu = measure_in_process(classifier, batch, options.seconds)
    cpu_start = cpu_seconds(pid)
    result = run_clients(url, options.clients, options.images, seconds=options.seconds, requests=1e9)
    images = result["requests"] * options.images
    served, server_cpu = images / result["seconds"], (cpu_seconds(pid) - cpu_start) * 1000 / images
    return Round(
        in_process, served, served / in_process, result["p50"], result["p99"], in_process_cpu, server_cpu,
        result["cpu"] * 1000 / images,
    )  # fmt: skip


def benchmark_throughput(bundle: Path, options: argparse.Namespace) -> None:
    """Print throughput, latency and CPU time of the server and of the same file in this process."""
    classifier = OnnxRuntimeClassifier(bundle / "model.onnx", spin=options.spin)
    speeds = {batch: measure_in_process(classifier, batch, options.seconds / 4)[0] for batch in BATCHES}
    best = max(speeds, key=lambda batch: speeds[batch])
    print("in process: " + ", ".join(f"batch {b}: {v:.0f} images/s" for b, v in speeds.items()))
    with start_server(bundle, options.serve.split()) as facts:
        url = f"{facts['rest']}/v2/models/{facts['models'][0]['name']}"
        run_clients(url, options.clients, options.images, seconds=1, requests=1e9)  # warm-up
        rounds = []
        for _ in range(options.rounds):
            rounds.append(measure_round(classifier, best, url, facts["pid"], options))
            print(rounds[-1])
    medians = Round(*(median(getattr(r, field.name) for r in rounds) for field in fields(Round)))
    print(f"medians, batch {best} in process: {medians}")
    print(f"{options.clients} clients, {options.images} images per request, {os.cpu_count()} cores")


def benchmark_memory(bundle: Path, options: argparse.Namespace) -> None:
    """Print the server's memory after each tenth of --requests."""
    with start_server(bundle, options.serve.split()) as facts:
        url = f"{facts['rest']}/v2/models/{facts['models'][0]['name']}"
        print(f"before the first request: {memory_mib(facts['pid']):.1f} MiB")
        count, done = options.requests // MEMORY_READINGS, 0
        for _ in range(MEMORY_READINGS):
            result = run_clients(url, options.clients, options.images, seconds=1e9, requests=count)
            done += result["requests"]
            print(
                f"after {done} requests: {memory_mib(facts['pid']):.1f} MiB; "
                f"{result['requests'] / result['seconds']:.0f} requests/s, p99 {result['p99']:.1f} ms"
            )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Load test of `robust-export serve`.")
    parser.add_argument("bundle", nargs="?", type=Path, help="bundle [an untrained ResNet-18 at 32 x 32]")
    parser.add_argument(
        "--requests", type=int, default=0, help="send this many, and print the server's memory"
    )
    parser.add_argument("--clients", type=int, default=64, help="connections [64]")
    parser.add_argument("--images", type=int, default=1, help="images per request [1]")
    parser.add_argument("--seconds", type=float, default=10, help="duration of each measurement [10]")
    parser.add_argument(
        "--rounds", type=int, default=3, help="measurements, of which medians are printed [3]"
    )
    parser.add_argument("--spin", action="store_true", help="let idle threads spin, in process only")
    parser.add_argument(
        "--serve", default="", metavar="OPTIONS", help="further options of robust-export serve"
    )
    parser.add_argument("--run-clients", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    if options.run_clients:
        print(json.dumps(asyncio.run(send_requests(**json.loads(options.run_clients)))))
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or write_untrained_bundle(Path(folder) / "r18_sparta")
        (benchmark_memory if options.requests else benchmark_throughput)(bundle, options)


if __name__ == "__main__":
    main()
