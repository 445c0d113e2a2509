"""The server's life: how it starts or refuses to, is overloaded, loses a worker, and ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from robust_export.serving.messages import SERVICE

from robust_export.cli import cli
from tests.serving import request_bodies
from tests.serving.bundles import expected, images, linear_bundle
from tests.serving.servers import LONG, Server, command, start
from tests.waiting import wait_for_exit, wait_until


@contextmanager
def client() -> Iterator[httpx.Client]:
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(timeout=LONG, limits=limits, trust_env=False) as made:
        yield made


def infer(http: httpx.Client, server: Server, model: str, n: int = 1, seed: int = 0) -> Any:
    body, headers = request_bodies.as_bytes(images(n, seed))
    return http.post(f"{server.rest}/v2/models/{model}/infer", content=body, headers=headers)


def right(response: Any, n: int = 1, seed: int = 0) -> bool:
    found = request_bodies.read(response.content, response.headers)["logits"]
    return bool(np.allclose(found, expected(images(n, seed)), rtol=1e-5, atol=1e-4))


def test_overload_is_refused_at_once_and_passes(slow: Path, tmp_path: Path) -> None:
    with (
        start(tmp_path, "--model", slow, "--no-grpc", "--queue", "4", "--max-batch", "1") as server,
        client() as http,
    ):
        with ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(lambda seed: infer(http, server, "slow", 20, seed), range(40)))
        codes = {answer.status_code for answer in answers}
        assert codes == {200, 429}
        for seed, answer in enumerate(answers):
            if answer.status_code == 200:
                assert right(answer, 20, seed)
            else:
                assert "waiting" in answer.json()["error"]
                assert int(answer.headers["Retry-After"]) > 0
        assert right(infer(http, server, "slow"))
        assert server.metric("robust_export_accepted_requests") == 0
        assert server.facts["grpc"] is None


def test_64_requests_may_wait(slow: Path, tmp_path: Path) -> None:
    with start(tmp_path, "--model", slow, "--no-grpc", "--max-batch", "1") as server, client() as http:
        with ThreadPoolExecutor(64) as pool:
            answers = list(pool.map(lambda seed: infer(http, server, "slow", 1, seed), range(64)))
        assert all(right(answer, 1, seed) for seed, answer in enumerate(answers))


def test_sigterm_finishes_what_was_accepted(slow: Path, tmp_path: Path) -> None:
    with start(tmp_path, "--model", slow, "--max-batch", "1") as server, client() as http:
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(infer, http, server, "slow", 40, seed) for seed in range(8)]
            wait_until(lambda: server.metric("robust_export_accepted_requests") == 8)
            assert server.end() == 0
            assert all(right(future.result(), 40, seed) for seed, future in enumerate(asked))
        with pytest.raises(httpx.ConnectError):
            http.get(f"{server.rest}/v2")
        assert server.log()[-1]["status"] == 200


def test_workers_share_the_port_and_one_that_is_killed_is_replaced(net: Path, tmp_path: Path) -> None:
    with start(tmp_path, "--model", net, "--workers", "2") as server, client() as http:
        assert right(infer(http, server, "net"))
        first = children(server.process.pid)
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        wait_for_exit(first[0])
        wait_until(lambda: len(children(server.process.pid)) == 2)
        now = children(server.process.pid)
        assert first[1] in now
        with client() as fresh:
            assert all(right(infer(fresh, server, "net", 2, seed), 2, seed) for seed in range(20))
        assert server.metric("robust_export_requests_total", model="net", status="200") >= 21
        assert any(line["event"].startswith("a worker ended") for line in server.log())
        assert server.end() == 0
    assert not [pid for pid in now if Path(f"/proc/{pid}").exists()]


def test_a_killed_worker_fails_its_requests_and_no_others(slow: Path, tmp_path: Path) -> None:
    with start(tmp_path, "--model", slow, "--workers", "2", "--max-batch", "1") as server:
        with client() as http, ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(infer, http, server, "slow", 40, seed) for seed in range(12)]
            wait_until(lambda: server.metric("robust_export_accepted_requests") == 12)
            os.kill(children(server.process.pid)[0], signal.SIGKILL)
            for seed, future in enumerate(asked):
                try:
                    assert right(future.result(), 40, seed)
                except httpx.TransportError:
                    continue
        with client() as http:
            assert right(infer(http, server, "slow"))


def test_workers_end_with_their_supervisor(net: Path, tmp_path: Path) -> None:
    with start(tmp_path, "--model", net, "--workers", "2", "--no-grpc") as server:
        workers = children(server.process.pid)
        server.process.kill()
        server.process.wait(LONG)
        for worker in workers:
            wait_for_exit(worker)


def interrupt_twice(server: Server) -> int:
    server.process.send_signal(signal.SIGINT)
    wait_until(lambda: any(line["event"] == "ending" for line in server.log()))
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGINT)
    return server.process.wait(LONG)


def test_a_second_interruption_waits_for_no_call(net: Path, tmp_path: Path, foreground: None) -> None:
    with start(tmp_path, "--model", net, "--timeout", "3600") as server, held_calls(server, 1):
        assert interrupt_twice(server) == 0


@contextmanager
def held_calls(server: Server, count: int) -> Iterator[None]:
    """Hold so many calls that have begun and send nothing, beside which a probe is answered."""
    end = threading.Event()

    def nothing() -> Iterator[bytes]:
        end.wait()
        yield b""

    with grpc.insecure_channel(server.grpc) as channel:
        grpc.channel_ready_future(channel).result(LONG)
        send = channel.stream_unary(f"/{SERVICE}/ModelInfer")
        asked = [send.future(nothing()) for _ in range(count)]
        try:
            live = channel.unary_unary(f"/{SERVICE}/ServerLive")
            assert live(b"", timeout=LONG) == b"\x08\x01"  # so that the server has seen those before it
            yield
        finally:
            end.set()
            for call in asked:
                call.cancel()


def test_probes_are_answered_beside_as_many_calls_as_may_be_open(
    net: Path, slow: Path, tmp_path: Path
) -> None:
    with start(tmp_path, "--model", net, "--model", slow, "--queue", "2") as server, held_calls(server, 4):
        pass


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_counts_for_itself_where_another_program_shares_its_counts(
    net: Path, tmp_path: Path, workers: str
) -> None:
    (tmp_path / "counts").mkdir()
    env = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "counts")}
    with (
        start(tmp_path, "--model", net, "--no-grpc", "--workers", workers, env=env) as server,
        client() as http,
    ):
        assert right(infer(http, server, "net"))
        assert server.metric("robust_export_requests_total", model="net") == 1
    assert not list((tmp_path / "counts").iterdir())


def test_it_may_open_as_many_files_as_it_takes_connections(net: Path, tmp_path: Path) -> None:
    with start(tmp_path, "--model", net, "--no-grpc", files=100) as server:
        (limit,) = [
            line
            for line in Path(f"/proc/{server.process.pid}/limits").read_text().splitlines()
            if line.startswith("Max open files")
        ]
    assert int(limit.split()[3]) > 2 * 1024


def test_it_says_where_the_system_allows_too_few_files(net: Path, tmp_path: Path) -> None:
    with start(tmp_path, "--model", net, "--no-grpc", "--connections", "1000000000") as server:
        assert any("open files" in line["event"] for line in server.log())


def children(pid: int) -> list[int]:
    """Return the workers among a process's children, the oldest first."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    found = [int(word) for word in text.split()]
    return [child for child in found if b"spawn_main" in _arguments(child)]


def _arguments(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def refused(*arguments: str | Path) -> tuple[int, str]:
    ran = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=LONG)
    assert ran.stdout == ""
    assert "Traceback" not in ran.stderr
    return ran.returncode, ran.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_altered_bundle_is_refused(net: Path, tmp_path: Path, workers: str) -> None:
    folder = tmp_path / "net"
    shutil.copytree(net, folder)
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-20] ^= 1
    (folder / "model.onnx").write_bytes(content)
    code, said = refused("--model", folder, "--workers", workers)
    assert code == 1
    assert "model.onnx was altered" in said


def test_what_it_refuses_to_start_with(net: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        other = linear_bundle(tmp_path / "net")
        cases: list[tuple[list[str | Path], int, str]] = [
            (["--model", net, "--port", port], 1, f"127.0.0.1:{port} cannot be listened on"),
            (["--model", net, "--grpc-port", port], 1, "--no-grpc"),
            (["--model", net, "--grpc-port", port, "--workers", "2"], 1, "--grpc-port"),
            (["--model", net, "--model", other], 2, "two bundles are named net"),
            (["--model", tmp_path / "none"], 1, "no bundle at"),
            (["--model", net, "--precision", "int8"], 1, "robust-export onnx"),
        ]
        for arguments, code, words in cases:
            got, said = refused(*arguments)
            assert (got, words in said) == (code, True), said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "nowhere.invalid"], "nowhere.invalid"),
        (["--tls-cert", "a.pem"], "--tls-key"),
        (["--queue", "0"], "'--queue'"),
        (["--port", "70000"], "'--port'"),
        (["--port", "5000", "--grpc-port", "5000"], "cannot share port 5000"),
        (["--timeout", "nan"], "timeout"),
        (["--runtime", "abacus"], "abacus"),
        (["--workers", "0"], "'--workers'"),
    ],
)
def test_options_that_are_wrong(net: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, ["serve", "--model", str(net), *arguments])
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""
