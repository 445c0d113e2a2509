"""Server processes: start-up errors, shutdown, signals, workers that are killed, metrics of workers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from robust_export.cli import cli
from robust_export.serving.grpc_service import SERVICE
from tests.serving.bundles import images
from tests.serving.raw_http import OpenRequest, address_of, connect
from tests.serving.servers import TIMEOUT, Server, command, start

RAISE_LIMIT = """
import resource
from robust_export.serving.sockets import raise_open_files_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
print(raise_open_files_limit(200), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.fixture(scope="module")
def foreign_metrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A metrics folder of another program."""
    return tmp_path_factory.mktemp("metrics")


@pytest.fixture(scope="module")
def one_process(net: Path, foreign_metrics: Path) -> Iterator[Server]:
    env = {"PROMETHEUS_MULTIPROC_DIR": str(foreign_metrics)}
    with start("--model", net, "--no-grpc", "--connections", "1000000000", env=env) as server:
        yield server


@pytest.fixture(scope="module")
def two_workers(net: Path, foreign_metrics: Path) -> Iterator[Server]:
    env = {"PROMETHEUS_MULTIPROC_DIR": str(foreign_metrics)}
    with start("--model", net, "--workers", "2", env=env) as server:
        yield server


def test_sigterm_answers_accepted_requests(net: Path) -> None:
    with start("--model", net, "--no-grpc") as server:
        address = address_of(server.rest)
        accepted = [OpenRequest(address, images(n, seed=n)) for n in (1, 2, 3)]
        server.process.send_signal(signal.SIGTERM)
        server.log.wait_for("shutting down")
        assert all(request.finish() for request in accepted)
        assert server.process.wait(TIMEOUT) == 0
        server.log.wait_for("request", count=3, status=200)
        with pytest.raises(ConnectionRefusedError):
            connect(address)


def test_killed_worker_is_replaced(two_workers: Server) -> None:
    server, address = two_workers, address_of(two_workers.rest)
    workers = {line["pid"] for line in server.log.wait_for("worker ready", count=2)}
    accepted = [OpenRequest(address, images(2, seed=n)) for n in range(12)]
    killed = workers.pop()
    os.kill(killed, signal.SIGKILL)
    server.log.wait_for("worker ended; restarting it", pid=killed)
    answered = sum(request.finish() for request in accepted)  # raises if a response is wrong
    replacement = server.log.wait_for("worker ready", count=3)[-1]["pid"]
    assert replacement not in {killed, *workers}
    assert all(OpenRequest(address, images(2, seed=n)).finish() for n in range(20))
    name = "robust_export_requests_total"
    assert server.metric(name, model="net", status="200") >= 20 + answered


@pytest.mark.parametrize("fixture", ["one_process", "two_workers"])
def test_metrics_folder_of_another_program_is_ignored(
    fixture: str, foreign_metrics: Path, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(fixture)
    name = "robust_export_requests_total"
    before = server.metric(name, model="net", status="200")
    assert OpenRequest(address_of(server.rest), images(1)).finish()
    assert server.metric(name, model="net", status="200") == before + 1
    assert not list(foreign_metrics.iterdir())


def test_workers_end_after_sigterm(two_workers: Server) -> None:
    assert two_workers.terminate() == 0
    two_workers.log.wait_for_end()


def test_workers_end_when_the_supervisor_is_killed(net: Path) -> None:
    with start("--model", net, "--workers", "2", "--no-grpc") as server:
        server.process.kill()
        server.process.wait(TIMEOUT)
        server.log.wait_for_end()


@contextmanager
def open_calls(server: Server, count: int) -> Iterator[None]:
    """Keep `count` gRPC calls open that send nothing; a health probe is answered meanwhile."""
    end = threading.Event()

    def no_messages() -> Iterator[bytes]:
        end.wait()
        yield b""

    with grpc.insecure_channel(server.grpc) as channel:
        grpc.channel_ready_future(channel).result(TIMEOUT)
        infer = channel.stream_unary(f"/{SERVICE}/ModelInfer")
        calls = [infer.future(no_messages()) for _ in range(count)]
        try:
            live = channel.unary_unary(f"/{SERVICE}/ServerLive")
            assert live(b"", timeout=TIMEOUT) == b"\x08\x01"  # the server has seen the earlier calls
            yield
        finally:
            end.set()
            for call in calls:
                call.cancel()


def test_second_interrupt_drops_open_calls(net: Path, slow: Path, foreground: None) -> None:
    models = ("--model", net, "--model", slow)
    calls = 4  # --queue for each of two models
    with start(*models, "--queue", "2", "--timeout", "3600") as server, open_calls(server, calls):
        server.process.send_signal(signal.SIGINT)
        server.log.wait_for("shutting down")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(TIMEOUT) == 0


def test_open_files_limit_is_raised() -> None:
    result = subprocess.run([sys.executable, "-c", RAISE_LIMIT], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["200", "200"]


def test_too_low_open_files_limit_is_logged(one_process: Server) -> None:
    assert any("open files" in line["event"] for line in one_process.log.lines())


def test_worker_reports_altered_bundle(net: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(net, tmp_path / "net")
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-20] ^= 1
    (folder / "model.onnx").write_bytes(content)
    words = command("--model", folder, "--workers", "2")
    result = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT)
    assert (result.returncode, result.stdout) == (1, "")
    assert "model.onnx was altered" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port"], "cannot listen on 127.0.0.1:{port}"),
        (["--workers", "2", "--port", "0", "--grpc-port"], "choose another --grpc-port"),
    ],
)
def test_used_port_is_an_error(net: Path, arguments: list[str], words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = str(used.getsockname()[1])
        result = CliRunner().invoke(cli, ["serve", "--model", str(net), *arguments, port])
    assert result.exit_code == 1
    assert words.format(port=port) in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "nowhere.invalid"], "nowhere.invalid"),
        (["--tls-cert", "a.pem"], "--tls-key"),
        (["--queue", "0"], "queue"),
        (["--port", "70000"], "port"),
        (["--port", "5000", "--grpc-port", "5000"], "cannot share port 5000"),
        (["--timeout", "nan"], "timeout"),
        (["--runtime", "abacus"], "abacus"),
        (["--workers", "0"], "workers"),
    ],
)
def test_invalid_option_is_a_usage_error(net: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, ["serve", "--model", str(net), *arguments])
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""
